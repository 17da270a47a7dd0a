//! Wrong values: `[acme]`, `[[acme.authority]]`, and `[[certificate]]` with hosts.

use super::*;

pub(super) const CASES: &[Case] = &[
    // What the section needs.
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "[acme]",
        1,
        "acme.terms_agreed: this setting is required",
        "letsencrypt (https://letsencrypt.org/repository/)",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = false\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "terms_agreed",
        16,
        "no authority issues certificates without it",
        "read the terms of letsencrypt (https://",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\n[[acme.authority]]\nname = \"own\"\ndirectory = \"https://acme.test/\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "[acme]",
        1,
        "terms_agreed: this setting is required",
        "the terms of own",
    ),
    // Settings of [acme].
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\ncontact = [\"ops\"]\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "contact",
        12,
        "\"ops\" is not a mail address",
        "ops@example.org",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\ncontact = \"a@b.test,c@b.test\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "contact",
        11,
        "is not a mail address",
        "ops@example.org",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\ncontact = \"https://b.test\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "contact",
        11,
        "is not a mail address",
        "ops@example.org",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\nresolver = \"resolver.test\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "resolver",
        12,
        "resolver.test",
        "",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\nchallenge = \"tls\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "challenge",
        13,
        "\"tls\" is not a challenge",
        "\"dns\" or \"http\"",
    ),
    // Authorities.
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[acme.authority]]\nca = \"x\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "[[acme.authority]]",
        1,
        "acme.authority[0].name: this setting is required",
        "letsencrypt",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[acme.authority]]\nname = \"letsencript\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "name = \"letsencript\"",
        8,
        "the directory of \"letsencript\" is not known",
        "did you mean \"letsencrypt\"?",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[acme.authority]]\nname = \"own\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "name = \"own\"",
        8,
        "the directory of \"own\" is not known",
        "add directory",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[acme.authority]]\nname = \"Own\"\ndirectory = \"https://acme.test/\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "name = \"Own\"",
        8,
        "\"Own\" cannot be a name",
        "lower-case",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[acme.authority]]\nname = \"own\"\ndirectory = \"https://acme.test/\"\n[[acme.authority]]\nname = \"own\"\ndirectory = \"https://acme.test/\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "name = \"own\"\ndirectory = \"https://acme.test/\"\n[[site]]",
        8,
        "\"own\" is the name of another authority",
        "once",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[acme.authority]]\nname = \"own\"\ndirectory = \"http://acme.test/dir\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "directory = ",
        13,
        "only an authority on this machine",
        "write its URL",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[acme.authority]]\nname = \"own\"\ndirectory = \"acme.test/dir\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "directory = ",
        13,
        "does not begin with https://",
        "write its URL",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[acme.authority]]\nname = \"own\"\ndirectory = \"https:///dir\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "directory = ",
        13,
        "it is empty",
        "write its URL",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[acme.authority]]\nname = \"own\"\ndirectory = \"https://u:p@acme.test/dir\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "directory = ",
        13,
        "this URL cannot be used: a URL with a user name is not taken",
        "write its URL",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[acme.authority]]\nname = \"own\"\ndirectory = \"https://a b/dir\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "directory = ",
        13,
        "characters that a URL cannot have",
        "write its URL",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[acme.authority]]\nname = \"own\"\ndirectory = \"https://user@acme.test/dir\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "directory = ",
        13,
        "a URL with a user name is not taken",
        "write its URL",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[acme.authority]]\nname = \"own\"\ndirectory = \"https://acme.test/dir#x\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "directory = ",
        13,
        "a fragment",
        "write its URL",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[acme.authority]]\nname = \"own\"\ndirectory = \"ftp://acme.test/dir\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "directory = ",
        13,
        "does not begin with https://",
        "write its URL",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[acme.authority]]\nname = \"own\"\ndirectory = \"https://acme.test:0/dir\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "directory = ",
        13,
        "port",
        "write its URL",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[acme.authority]]\nname = \"zerossl\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "[[acme.authority]]",
        1,
        "eab_key_id: this setting is required",
        "eab_hmac_key_file, which zerossl shows",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[acme.authority]]\nname = \"zerossl\"\neab_key_id = \"k\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "[[acme.authority]]",
        1,
        "eab_hmac_key_file: this setting is required",
        "the key of that account",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[acme.authority]]\nname = \"google\"\neab_hmac_key_file = \"k\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "[[acme.authority]]",
        1,
        "eab_key_id: this setting is required",
        "belongs to that key",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[acme.authority]]\nname = \"google\"\neab_key_id = \"\"\neab_hmac_key_file = \"k\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "eab_key_id",
        14,
        "it is empty",
        "the identifier",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[acme.authority]]\nname = \"google\"\neab_key_id = \"k\"\neab_hmac_key_file = \"\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "eab_hmac_key_file",
        21,
        "the path is empty",
        "write a path",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[acme.authority]]\nname = \"letsencrypt\"\nprofile = \"short lived\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "profile",
        11,
        "not visible ASCII",
        "shortlived",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[acme.authority]]\nname = \"letsencrypt\"\nca = \"\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "ca = \"\"",
        6,
        "the path is empty",
        "write a path",
    ),
    // Certificates that are ordered.
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\n[[certificate]]\nhosts = \"www.demo.test\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "hosts = \"www.demo.test\"",
        9,
        "control orders no certificates",
        "terms_agreed = true",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[certificate]]\nhosts = \"www.demo.test\"\ncert = \"a\"\nkey = \"b\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "hosts = \"www.demo.test\"\ncert",
        9,
        "this certificate has files",
        "remove hosts",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[certificate]]\nchallenge = \"dns\"\ncert = \"a\"\nkey = \"b\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "challenge",
        13,
        "this certificate has files",
        "remove challenge",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[certificate]]\nhosts = []\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "hosts = []",
        9,
        "the list is empty",
        "at least one host",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[certificate]]\nhosts = [\"*\"]\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "hosts = [\"*\"]",
        10,
        "* stands for one label",
        "*.example.org",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[certificate]]\nhosts = [\"w*.demo.test\"]\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "hosts = [\"w*",
        10,
        "* stands for one label",
        "*.example.org",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[certificate]]\nhosts = [\"192.0.2.1\"]\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "hosts = [\"192",
        10,
        "it is an address",
        "www.example.org",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[certificate]]\nhosts = [\"test\"]\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "hosts = [\"test\"",
        10,
        "no top-level names",
        "www.example.org",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[certificate]]\nhosts = [\"a_b.test\"]\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "hosts = [\"a_b",
        10,
        "names with _",
        "www.example.org",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[certificate]]\nhosts = [\"a..test\"]\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "hosts = [\"a..",
        10,
        "an empty label",
        "www.example.org",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[certificate]]\nhosts = [\"www.demo.test\", \"WWW.demo.test.\"]\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "\"WWW.demo.test.\"",
        27,
        "www.demo.test is listed twice",
        "remove one",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[certificate]]\nhosts = [\"www.demo.test\"]\n[[certificate]]\nhosts = [\"www.demo.test\"]\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "[\"www.demo.test\"]\n[[site]]",
        10,
        "www.demo.test is in another certificate, in line",
        "limits",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[certificate]]\nhosts = [\"mail.demo.test\"]\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "hosts = [\"mail",
        10,
        "mail.demo.test belongs to no site",
        "[[site]]",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[certificate]]\nhosts = [\"*.www.demo.test\"]\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "hosts = [\"*.www",
        10,
        "*.www.demo.test belongs to no site",
        "[[site]]",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[certificate]]\nhosts = [\"*.demo.test\"]\nchallenge = \"http\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "hosts = [\"*.demo",
        10,
        "no authority issues a wildcard for the challenge http",
        "challenge = \"dns\"",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\nchallenge = \"http\"\n[[certificate]]\nhosts = [\"*.demo.test\"]\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "hosts = [\"*.demo",
        10,
        "no authority issues a wildcard for the challenge http",
        "challenge = \"dns\"",
    ),
    (
        "threads = 1\n\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "threads = 1\nlisten_tls = \"127.9.0.12:8443\"\n[acme]\nterms_agreed = true\n[[certificate]]\nhosts = [\"www.demo.test\"]\nchallenge = \"alpn\"\n[[site]]\nname = \"www\"\nhosts = [\"www.demo.test\"]\norigin = \"http://127.9.0.80:8000\"\n",
        "challenge",
        13,
        "\"alpn\" is not a challenge",
        "\"dns\" or \"http\"",
    ),
];

/// A fleet with `[acme]`, and these sections before and after it.
fn mistakes(before: &str, node: &str, after: &str) -> Vec<Mistake> {
    let text = format!(
        "[fleet]\nzone = \"cdn.test\"\nnode_key = \"a key that only this test knows\"\n{before}\n\
         [acme]\nterms_agreed = true\n\
         [[cluster]]\nname = \"ams\"\nplace = {{ latitude = 1, longitude = 1 }}\n\
         [[cluster.node]]\nname = \"ams-1\"\naddress = \"192.0.2.1\"\n{node}\n\
         [[site]]\nname = \"www\"\nhosts = [\"www.demo.test\", \"*\"]\norigin = \"http://192.0.2.80\"\n{after}\n"
    );
    parse(&text, Path::new("/")).err().unwrap_or_default()
}

#[test]
fn certificates_need_control_edges_with_tls_and_name_servers_where_they_answer() {
    let control = "[control]";
    let table = [
        (control, "", "", ""),
        ("", "", "", "acme: there is no control"),
        (
            control,
            "listen_tls = []",
            "",
            "acme: no edge has listen_tls",
        ),
        (
            control,
            "",
            "[[certificate]]\nhosts = \"*.demo.test\"",
            "there is no name server to answer it",
        ),
        (
            control,
            "",
            "[[certificate]]\nhosts = \"www.demo.test\"\nchallenge = \"dns\"",
            "there is no name server to answer it",
        ),
    ];
    for (before, node, after, problem) in table {
        let found = mistakes(before, node, after);
        match &found[..] {
            [] if problem.is_empty() => {}
            [one] if !problem.is_empty() && one.problem.contains(problem) => {}
            other => panic!("{problem:?}: {}", describe("file", other)),
        }
    }
}

#[test]
fn a_certificate_has_a_hundred_names_at_most() {
    for (names, is_good) in [(100, true), (101, false)] {
        let hosts: Vec<String> = (0..names).map(|n| format!("\"h{n}.demo.test\"")).collect();
        let after = format!("[[certificate]]\nhosts = [{}]", hosts.join(", "));
        let found = mistakes("[control]", "", &after);
        assert_eq!(found.is_empty(), is_good, "{found:?}");
        assert!(
            found.iter().all(|m| m.problem.contains("101 names")),
            "{found:?}"
        );
    }
}
