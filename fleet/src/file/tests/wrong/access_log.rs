//! Wrong values: `[access_log]`.

use super::Case;

pub(super) const CASES: &[Case] = &[
    (
        "[control]\n",
        "[access_log]\nformat = \"json\"\n[control]\n",
        "[access_log]",
        1,
        "access_log.path: this setting is required",
        "standard output",
    ),
    (
        "[control]\n",
        "[access_log]\npath = \"logs/\"\n[control]\n",
        "path = \"logs/\"",
        8,
        "\"logs/\" is not the path of a file",
        "access.log",
    ),
    (
        "[control]\n",
        "[access_log]\npath = \"-\"\nformat = \"comon\"\n[control]\n",
        "format = \"comon\"",
        10,
        "there is no format \"comon\"",
        "did you mean \"common\"?",
    ),
    (
        "[control]\n",
        "[access_log]\npath = \"-\"\nclient = \"none\"\n[control]\n",
        "client = \"none\"",
        10,
        "there is no client \"none\"",
        "\"whole\", \"truncated\"",
    ),
    (
        "[control]\n",
        "[access_log]\npath = \"-\"\nsample = \"101%\"\n[control]\n",
        "sample = \"101%\"",
        10,
        "101%",
        "",
    ),
    (
        "[control]\n",
        "[access_log]\npath = \"-\"\nrotate_at = \"1KiB\"\n[control]\n",
        "rotate_at = \"1KiB\"",
        13,
        "1KiB is out of range",
        "write one from",
    ),
    (
        "[control]\n",
        "[access_log]\npath = \"./journal.copy\"\n[control]\n",
        "path = \"./journal",
        8,
        "\"./journal.copy\" is a file of the node itself",
        "access.log",
    ),
    (
        "[control]\n",
        "[access_log]\npath = \"store/access.log\"\n[control]\n",
        "path = \"store",
        8,
        "is a file of the node itself",
        "another name",
    ),
];
