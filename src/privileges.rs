//! Makes a role that is started as root run as another user.
//!
//! Before any thread starts, this module chooses the user, makes the state directories and gives
//! them to the user, and changes to the user, except for the saved user id. One capability stays,
//! which low ports need. So the role reads every file as that user: a file that a SIGHUP could not
//! read again fails the start. When the listeners are open, the saved user id and the capability
//! are dropped too.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nearcast_fleet::config::Fleet;
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::file::{self, KeySource};
use nearcast_origin::demo::PageSteering;

use crate::cli::{Command, NodeArgs};
use crate::{find, kernel, roles};

/// Default users of a role, in order.
const DEFAULT_USERS: [&str; 2] = ["nearcast", "nobody"];
/// The user id of `nobody` where the system knows no users at all, as in an empty container.
const NOBODY_ID: u32 = 65_534;
/// Where trials are. Not the directory of the environment: with that, any could be a trial's.
const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];
/// Depth to which the owner of a state directory is changed. The store needs two.
const DEPTH_MAX: usize = 32;

/// A user and the groups it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    /// Its name in messages.
    pub(crate) name: String,
    pub(crate) uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Account {
    /// The default user of a role.
    pub(crate) fn default_of_system() -> Self {
        let (passwd, group) = databases();
        let known = DEFAULT_USERS
            .iter()
            .find_map(|name| Self::find(name, &passwd, &group).ok());
        known.unwrap_or_else(|| Self {
            name: "nobody".to_owned(),
            uid: NOBODY_ID,
            gid: NOBODY_ID,
            groups: Vec::new(),
        })
    }

    /// The user that a fleet's roles run as when root starts them; `None` if that is root or unknown.
    pub(crate) fn of_fleet(fleet: &Fleet) -> Option<Self> {
        let (passwd, group) = databases();
        let account = match &fleet.user {
            Some(named) => Self::find(named, &passwd, &group).ok()?,
            None => Self::default_of_system(),
        };
        (account.uid != 0).then_some(account)
    }

    /// The file, or the directory above it, whose permission bits keep it from reading that file.
    /// `None` also below a temporary directory that is closed: a trial, whose roles stay root.
    pub(crate) fn closed_to(&self, path: &Path) -> Option<PathBuf> {
        self.closed(path)
            .filter(|closed| !(closed.is_dir() && TEMPORARY.iter().any(|t| closed.starts_with(t))))
    }

    fn closed(&self, path: &Path) -> Option<PathBuf> {
        let named = std::path::absolute(path).ok()?;
        // A link leads to a file that may be below other directories.
        let real = fs::canonicalize(path).ok()?;
        let is_closed = |directory: &&Path| {
            fs::metadata(directory).is_ok_and(|about| !self.may_enter(&about, false))
        };
        let mut directories = named.ancestors().skip(1).chain(real.ancestors().skip(1));
        if let Some(closed) = directories.find(is_closed) {
            return Some(closed.to_owned());
        }
        let about = fs::metadata(&real).ok()?;
        (!self.has_bits(&about, 0o4)).then(|| path.to_owned())
    }

    /// `USER` or `USER:GROUP`, each a name or a number, in the texts of `/etc/passwd` and
    /// `/etc/group`. Other sources of names are not asked: a static binary cannot load them. A
    /// number needs no entry.
    fn find(text: &str, passwd: &str, group: &str) -> Result<Self, String> {
        let (user, its_group) = text
            .split_once(':')
            .map_or((text, None), |(user, group)| (user, Some(group)));
        let number = user.parse::<u32>().ok();
        let entry = passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| match fields[..] {
                [name, _, uid, _, ..] => {
                    name == user || number.is_some_and(|number| uid.parse() == Ok(number))
                }
                _ => false,
            });
        let entry = entry.and_then(|fields| {
            Some((
                fields[0].to_owned(),
                fields[2].parse::<u32>().ok()?,
                fields[3].parse::<u32>().ok()?,
            ))
        });
        let (name, uid, own_gid) = match (entry, number) {
            (Some(entry), _) => entry,
            (None, Some(number)) => (number.to_string(), number, number),
            (None, None) => {
                return Err(format!(
                    "there is no user {user:?} in /etc/passwd; make one (useradd -r {user}), or write its number"
                ));
            }
        };
        let mut groups = Vec::new();
        let mut gid = its_group.and_then(|text| text.parse().ok());
        for fields in group
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
        {
            let [group, _, number, members, ..] = fields[..] else {
                continue;
            };
            let Ok(number) = number.parse::<u32>() else {
                continue;
            };
            if Some(group) == its_group {
                gid = Some(number);
            }
            if members.split(',').any(|member| member == name) && number != 0 {
                groups.push(number);
            }
        }
        match (gid, its_group) {
            (Some(gid), _) => Ok(Self {
                name,
                uid,
                gid,
                groups,
            }),
            (None, None) => Ok(Self {
                name,
                uid,
                gid: own_gid,
                groups,
            }),
            (None, Some(group)) => Err(format!(
                "there is no group {group:?} in /etc/group; make one, or write its number"
            )),
        }
    }

    /// Whether the permission bits let it search (and, where `read`, list) a directory.
    fn may_enter(&self, about: &fs::Metadata, read: bool) -> bool {
        self.has_bits(about, if read { 0o5 } else { 0o1 })
    }

    fn has_bits(&self, about: &fs::Metadata, wanted: u32) -> bool {
        let shift = match () {
            () if about.uid() == self.uid => 6,
            () if about.gid() == self.gid || self.groups.contains(&about.gid()) => 3,
            () => 0,
        };
        about.mode() >> shift & wanted == wanted
    }
}

fn databases() -> (String, String) {
    let read = |path: &str| {
        fs::read(path)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    };
    (read("/etc/passwd"), read("/etc/group"))
}

/// The files and directories that a role needs.
struct Needs {
    fleet_path: Option<PathBuf>,
    /// The file with the node's key, where it is not the fleet file that says it.
    key: Option<PathBuf>,
    /// The fleet's state directory, and the node's own in it.
    state: Option<(PathBuf, PathBuf)>,
    /// Files that are read now and perhaps again later, where they are there.
    files: Vec<PathBuf>,
    /// Directories whose files are served.
    served: Vec<PathBuf>,
    /// Directories that the role writes; missing ones are made.
    filled: Vec<PathBuf>,
    /// For the demo's content in such a directory.
    steering: PageSteering,
    /// The user that the configuration names, and where it does.
    user: Option<String>,
}

/// The privileges that a process that was started as root still has.
#[derive(Debug, Default)]
pub(crate) struct Privileges {
    account: Option<Account>,
    /// Why it stays root, if it does.
    root_because: Option<String>,
    /// Directories made for it, outermost first.
    made: Vec<PathBuf>,
    is_final: Arc<AtomicBool>,
}

impl Privileges {
    /// Makes this process run as a user of little rights when it is a role that was started as
    /// root; see the module. Call it before any thread starts. A fleet file with mistakes is left
    /// for the role to refuse.
    ///
    /// # Errors
    /// There is no such user, or something cannot be read, written or handed over: the message
    /// names path and user.
    pub(crate) fn confine(command: &Command) -> Result<Self, Failure> {
        if kernel::user_id() != 0 {
            return Ok(Self::default());
        }
        let Some(needs) = needs(command) else {
            return Ok(Self::default());
        };
        let (passwd, group) = databases();
        let account = match &needs.user {
            Some(named) => Account::find(named, &passwd, &group)
                .map_err(|problem| Failure::new(FailureKind::Usage, problem))?,
            None => Account::default_of_system(),
        };
        if account.uid == 0 {
            return Ok(Self::staying_root(
                "as configured: a fault in it can harm the whole machine".to_owned(),
            ));
        }
        if needs.user.is_none()
            && let Some(closed) = closed_trial(&needs, &account)
        {
            let closed = closed.display();
            return Ok(Self::staying_root(format!(
                "as it needs something in {closed}, a temporary directory that only root may enter; set user to have another"
            )));
        }
        let mut made = Vec::new();
        let outcome = prepare_directories(&needs, &account, &mut made).and_then(|()| {
            kernel::become_user(account.uid, account.gid, &account.groups).map_err(|e| {
                Failure::new(
                    FailureKind::System,
                    format!(
                        "cannot run as {}: {e}; say user = \"root\" to stay root",
                        account.name
                    ),
                )
            })
        });
        let this = Self {
            account: Some(account),
            made,
            ..Self::default()
        };
        match outcome.and_then(|()| this.check(&needs)) {
            Ok(()) => Ok(this),
            Err(failure) => {
                this.take_back();
                Err(failure)
            }
        }
    }

    fn staying_root(because: String) -> Self {
        Self {
            root_because: Some(because),
            ..Self::default()
        }
    }

    /// The step for when the listeners are open: drops the rest, or warns that the role stays root.
    pub(crate) fn when_open(&self) -> impl FnOnce() -> Result<(), Failure> + Send + 'static {
        let (account, root_because, is_final) = (
            self.account.clone(),
            self.root_because.clone(),
            self.is_final.clone(),
        );
        move || {
            if let Some(because) = root_because {
                tracing::warn!("this node keeps running as root, {because}");
            }
            let Some(account) = account else {
                return Ok(());
            };
            kernel::forget_root(account.uid).map_err(|e| {
                Failure::new(
                    FailureKind::System,
                    format!("cannot give up what is left of root: {e}"),
                )
            })?;
            is_final.store(true, Ordering::Relaxed);
            tracing::info!(
                user = account.name,
                uid = account.uid,
                gid = account.gid,
                "started as root, running as another user"
            );
            Ok(())
        }
    }

    /// Removes the directories that a failed start has made.
    pub(crate) fn take_back(self) {
        if self.made.is_empty() || self.is_final.load(Ordering::Relaxed) {
            return;
        }
        // What is the user's own first: root without its capabilities may not enter it. Only what
        // is empty goes.
        let remove = || {
            self.made
                .iter()
                .rev()
                .for_each(|directory| drop(fs::remove_dir(directory)))
        };
        remove();
        if kernel::regain_root().is_ok() {
            remove();
        }
    }

    /// Checks that the user of this process can read every file that is read again later.
    fn check(&self, needs: &Needs) -> Result<(), Failure> {
        let name = self.account.as_ref().map_or("", |account| &account.name);
        let refused = |path: &Path, error: &io::Error, what: &str| {
            let hint = "this role was started as root and runs as that user; let it (chgrp GROUP FILE, chmod 640 FILE), or name another with user in [fleet] or --user";
            Failure::new(
                FailureKind::NoInput,
                format!(
                    "the user {name} cannot {what} {}: {error}; {hint}",
                    path.display()
                ),
            )
        };
        for path in needs
            .fleet_path
            .iter()
            .chain(&needs.key)
            .chain(&needs.files)
        {
            match File::open(path) {
                // Whether it has to be there is for the role to know.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => drop(opened.map_err(|e| refused(path, &e, "read"))?),
            }
        }
        for path in &needs.served {
            match fs::read_dir(path).and_then(|_| fs::metadata(path.join("."))) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(refused(path, &error, "serve the files of")),
                Ok(_) => {}
            }
        }
        if let Some((_, own)) = &needs.state {
            let entered = fs::read_dir(own).and_then(|_| fs::metadata(own.join(".")));
            entered.map_err(|e| refused(own, &e, "keep its state in"))?;
        }
        if let Some(path) = &needs.fleet_path {
            // The secrets' files are named in it.
            let disk = roles::Disk {
                path: path.clone(),
                key: needs.key.clone(),
            };
            disk.load().map_err(|failure| Failure {
                message: format!("{} (read as the user {name})", failure.message),
                ..failure
            })?;
        }
        Ok(())
    }
}

/// What the command needs, when it is a role and its fleet file is good.
fn needs(command: &Command) -> Option<Needs> {
    let mut needs = Needs {
        fleet_path: None,
        key: None,
        state: None,
        files: Vec::new(),
        served: Vec::new(),
        filled: Vec::new(),
        steering: PageSteering::default(),
        user: None,
    };
    let certificates = || std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let (node, kind) = match command {
        Command::GslbDns(arguments) => (&arguments.node, Kind::NameServer),
        Command::Control(arguments) => (arguments, Kind::Control),
        Command::Edge(arguments) => {
            needs.files.extend(certificates());
            if arguments.origin.is_some() {
                needs.user.clone_from(&arguments.node.user);
                needs.state = arguments
                    .state_dir
                    .clone()
                    .map(|dir| (dir.clone(), dir.join("edge")));
                needs.files.extend(arguments.acme_ca.clone());
                return Some(needs);
            }
            (&arguments.node, Kind::Edge)
        }
        Command::Origin(arguments) => {
            if let Some(root) = &arguments.root {
                needs.user.clone_from(&arguments.node.user);
                let list = if arguments.demo_content {
                    &mut needs.filled
                } else {
                    &mut needs.served
                };
                list.push(root.clone());
                return Some(needs);
            }
            (
                &arguments.node,
                Kind::Origin {
                    demo_content: arguments.demo_content,
                },
            )
        }
        _ => return None,
    };
    of_fleet(node, kind, needs)
}

#[derive(Clone, Copy)]
enum Kind {
    NameServer,
    Edge,
    Origin { demo_content: bool },
    Control,
}

fn of_fleet(arguments: &NodeArgs, kind: Kind, mut needs: Needs) -> Option<Needs> {
    let path = find::fleet_path(arguments.fleet.fleet.as_deref()).ok()?;
    let fleet = file::load_with(&path, KeySource::Unneeded).ok()?;
    let asked = arguments.node.as_deref();
    let name = match kind {
        Kind::NameServer => roles::choose(
            asked,
            "",
            fleet.name_servers.iter().map(|n| n.name.as_str()),
        ),
        Kind::Edge => roles::choose(
            asked,
            "",
            fleet
                .clusters
                .iter()
                .flat_map(|c| &c.nodes)
                .map(|n| n.name.as_str()),
        ),
        Kind::Origin { .. } => {
            roles::choose(asked, "", fleet.origins.iter().map(|n| n.name.as_str()))
        }
        Kind::Control => roles::choose(asked, "", fleet.control.iter().map(|c| c.name.as_str())),
    };
    let name = name.ok()?;
    needs.files.extend(fleet.ca.clone());
    let own = fleet
        .control
        .as_ref()
        .filter(|_| matches!(kind, Kind::Control));
    let shown = [
        own.and_then(|c| c.identity.as_ref()),
        fleet.admin_identity.as_ref(),
    ];
    for files in shown.into_iter().flatten() {
        needs.files.extend([files.cert.clone(), files.key.clone()]);
    }
    match kind {
        Kind::NameServer => needs.files.extend(fleet.steering.geo_db.clone()),
        Kind::Edge => needs.files.extend(tls_files(&fleet)),
        Kind::Origin { demo_content } => {
            let root = fleet
                .origins
                .iter()
                .find(|o| o.name == name)
                .map(|o| o.root.clone());
            if demo_content {
                needs.filled.extend(root);
                needs.steering = PageSteering::of(&fleet);
            } else {
                needs.served.extend(root)
            }
        }
        Kind::Control => {}
    }
    needs.user = arguments.user.clone().or_else(|| fleet.user.clone());
    needs.state = Some((fleet.state_dir.clone(), fleet.node_dir(&name)));
    needs.key = roles::key_file(arguments.key_file.clone(), &fleet, &name);
    needs.fleet_path = Some(std::path::absolute(&path).unwrap_or(path));
    Some(needs)
}

fn tls_files(fleet: &Fleet) -> Vec<PathBuf> {
    let of_site = |site: &nearcast_fleet::config::Site| {
        let tls = site.origin_policy.tls.clone();
        let (cert, key) = tls.identity.unzip();
        [tls.ca, cert, key].into_iter().flatten()
    };
    fleet.sites.iter().flat_map(of_site).collect()
}

/// Where something is needed below the temporary directory, a directory above it that only root may
/// enter: a trial, such as a test of this program. State directories are handed over, so they are
/// none.
fn closed_trial(needs: &Needs, account: &Account) -> Option<PathBuf> {
    let state = needs.state.as_ref().map(|(state, _)| state.as_path());
    let is_closed = |directory: &Path, read| {
        let about = fs::metadata(directory).ok().filter(fs::Metadata::is_dir);
        Some(directory) != state
            && about.is_some_and(|about| about.uid() == 0 && !account.may_enter(&about, read))
    };
    let paths = needs
        .fleet_path
        .iter()
        .chain(&needs.key)
        .chain(&needs.files)
        .chain(&needs.served)
        .chain(&needs.filled)
        .map(PathBuf::as_path)
        .chain(state);
    for path in paths.filter(|path| TEMPORARY.iter().any(|t| path.starts_with(t))) {
        if let Some(closed) = path
            .ancestors()
            .skip(1)
            .find(|directory| is_closed(directory, false))
        {
            return Some(closed.to_owned());
        }
    }
    // A directory that is served without a fleet file is the whole of the trial.
    let mut served = needs
        .served
        .iter()
        .filter(|path| needs.fleet_path.is_none() && TEMPORARY.iter().any(|t| path.starts_with(t)));
    served.find(|path| is_closed(path, true)).cloned()
}

fn prepare_directories(
    needs: &Needs,
    account: &Account,
    made: &mut Vec<PathBuf>,
) -> Result<(), Failure> {
    if let Some((state, own)) = &needs.state {
        make_parents(state, made).map_err(|e| cannot_make(state, &e))?;
        hand_over_state(state, account, made).map_err(|e| cannot_make(state, &e))?;
        hand_over(own, account, made).map_err(|e| cannot_make(own, &e))?;
    }
    for path in &needs.filled {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_parents(path, made).map_err(|e| cannot_make(path, &e))?;
                make_with_mode(path, 0o755, account, made).map_err(|e| cannot_make(path, &e))?;
            }
            // What root's own directory lacks, root writes; the role finds it there.
            Ok(about) if about.is_dir() && about.uid() == 0 => {
                roles::write_demo_content(path, &needs.steering)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn cannot_make(path: &Path, error: &io::Error) -> Failure {
    let kind = if error.kind() == io::ErrorKind::StorageFull {
        FailureKind::Io
    } else {
        FailureKind::CannotCreate
    };
    Failure::new(
        kind,
        format!(
            "cannot prepare {}: {error}; make it a directory of the user that the role runs as, or choose another",
            path.display()
        ),
    )
}

/// Makes the missing directories above a path, as root's own that everybody may enter.
fn make_parents(path: &Path, made: &mut Vec<PathBuf>) -> io::Result<()> {
    let missing: Vec<&Path> = path
        .ancestors()
        .skip(1)
        .filter(|p| !p.as_os_str().is_empty())
        .take_while(|p| !p.exists())
        .collect();
    for directory in missing.into_iter().rev() {
        match DirBuilder::new().mode(0o755).create(directory) {
            Ok(()) => made.push(directory.to_owned()),
            // By another node that starts at the same time.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The fleet's state directory: one that is missing, or that only root may enter, becomes the
/// user's; any other stays as it is.
fn hand_over_state(path: &Path, account: &Account, made: &mut Vec<PathBuf>) -> io::Result<()> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_with_mode(path, 0o700, account, made)
        }
        Err(error) => Err(error),
        Ok(about) if about.uid() == 0 && !account.may_enter(&about, false) => {
            std::os::unix::fs::chown(path, Some(account.uid), Some(account.gid))
        }
        Ok(_) => Ok(()),
    }
}

/// Makes a directory of the user. One that another node makes at the same time is that node's to
/// hand over, or ours: both do the same.
fn make_with_mode(
    path: &Path,
    mode: u32,
    account: &Account,
    made: &mut Vec<PathBuf>,
) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => made.push(path.to_owned()),
        Err(error)
            if error.kind() == io::ErrorKind::AlreadyExists
                && fs::symlink_metadata(path)?.is_dir() => {}
        Err(error) => return Err(error),
    }
    std::os::unix::fs::lchown(path, Some(account.uid), Some(account.gid))
}

/// A node's own directory: the user's alone. One of root, as earlier versions left it, is handed
/// over with all that is in it, its top last, so that a hand-over that was cut off is begun again.
/// Links are never followed: one in place of the directory is refused.
fn hand_over(path: &Path, account: &Account, made: &mut Vec<PathBuf>) -> io::Result<()> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(path);
    let directory = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return make_with_mode(path, 0o700, account, made);
        }
        other => other?,
    };
    let about = directory.metadata()?;
    if about.uid() != 0 && about.uid() != account.uid {
        let problem = format!(
            "it belongs to the user {}, and the role runs as {}",
            about.uid(),
            account.name
        );
        return Err(io::Error::other(problem));
    }
    if about.uid() == 0 {
        hand_over_below(path, account, DEPTH_MAX)?;
        std::os::unix::fs::fchown(&directory, Some(account.uid), Some(account.gid))?;
    }
    directory.set_permissions(Permissions::from_mode(0o700))
}

fn hand_over_below(directory: &Path, account: &Account, depth: usize) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::other(
            "it is nested too deeply for a state directory",
        ));
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let (path, about) = (entry.path(), entry.metadata()?); // of the entry itself, not of what a link names
        if about.uid() != 0 {
            continue;
        }
        if about.is_dir() {
            hand_over_below(&path, account, depth - 1)?;
        }
        // A second name of a file may be anywhere.
        if about.is_dir() || about.nlink() == 1 {
            std::os::unix::fs::lchown(&path, Some(account.uid), Some(account.gid))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbad line\nnearcast:x:997:996::/:/bin/false\nnobody:x:65534:65534::/:/bin/false\n";
    const GROUP: &str =
        "root:x:0:nearcast\nnearcast:x:996:\nssl-cert:x:110:www,nearcast\nnogroup:x:65534:\n";

    #[test]
    fn users_are_found_by_name_and_number() {
        let account = |name: &str, uid, gid, groups: &[u32]| Account {
            name: name.to_owned(),
            uid,
            gid,
            groups: groups.to_vec(),
        };
        for (text, expected) in [
            ("nearcast", Ok(account("nearcast", 997, 996, &[110]))),
            ("997", Ok(account("nearcast", 997, 996, &[110]))),
            (
                "nearcast:ssl-cert",
                Ok(account("nearcast", 997, 110, &[110])),
            ),
            ("nearcast:5", Ok(account("nearcast", 997, 5, &[110]))),
            ("nobody", Ok(account("nobody", 65534, 65534, &[]))),
            ("1234", Ok(account("1234", 1234, 1234, &[]))),
            ("1234:4321", Ok(account("1234", 1234, 4321, &[]))),
            ("root", Ok(account("root", 0, 0, &[]))),
            ("0", Ok(account("root", 0, 0, &[]))),
            ("caddy", Err("no user \"caddy\"")),
            ("nearcast:caddy", Err("no group \"caddy\"")),
        ] {
            match (Account::find(text, PASSWD, GROUP), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
                (Err(problem), Err(words)) => assert!(problem.contains(words), "{text}: {problem}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_file_is_closed_by_its_bits_or_by_a_directory_above_it_or_its_target() {
        let account = |uid, gid| Account {
            name: "someone".to_owned(),
            uid,
            gid,
            groups: vec![],
        };
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("archive")).expect("made");
        fs::write(path("archive/key"), "").expect("written");
        std::os::unix::fs::symlink(path("archive/key"), path("key")).expect("made");
        let about = fs::metadata(path("key")).expect("there");
        let set = |name: &str, mode| {
            fs::set_permissions(path(name), Permissions::from_mode(mode)).expect("ours");
        };
        set("", 0o755);
        let (stranger, member) = (account(54_321, 54_321), account(54_321, about.gid()));
        for (archive, key, of_stranger, of_member) in [
            (0o755, 0o600, Some("key"), Some("key")),
            (0o755, 0o640, Some("key"), None),
            (0o755, 0o644, None, None),
            (0o700, 0o644, Some("archive"), Some("archive")),
            (0o710, 0o640, Some("archive"), None),
        ] {
            set("archive/key", key);
            set("archive", archive);
            for (account, expected) in [(&stranger, of_stranger), (&member, of_member)] {
                let found = account.closed(&path("key"));
                assert_eq!(found, expected.map(path), "{archive:o} {key:o} {account:?}");
            }
        }
        assert_eq!(stranger.closed(&path("nowhere")), None);
        assert_eq!(stranger.closed_to(&path("key")), None, "a trial");
    }

    #[test]
    fn a_state_directory_of_somebody_else_or_behind_a_link_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let own = kernel::user_id();
        let (account, other) = (
            Account {
                name: "me".into(),
                uid: own,
                gid: fs::metadata(directory.path()).expect("there").gid(),
                groups: Vec::new(),
            },
            Account {
                name: "other".into(),
                uid: own + 1,
                gid: 1,
                groups: Vec::new(),
            },
        );
        let (path, link) = (directory.path().join("node"), directory.path().join("link"));
        let mut made = Vec::new();
        hand_over(&path, &account, &mut made).expect("it is made");
        assert_eq!(
            (
                fs::metadata(&path).expect("there").mode() & 0o777,
                &made[..]
            ),
            (0o700, &[path.clone()][..])
        );
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("ours");
        hand_over(&path, &account, &mut made).expect("it is ours already");
        assert_eq!(
            (
                fs::metadata(&path).expect("there").mode() & 0o777,
                made.len()
            ),
            (0o700, 1)
        );
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        assert!(hand_over(&link, &account, &mut made).is_err());
        if own == 0 {
            // What is root's is handed over; this is a third user's.
            std::os::unix::fs::chown(&path, Some(own + 2), None).expect("root may");
        }
        assert!(
            hand_over(&path, &other, &mut made)
                .is_err_and(|e| e.to_string().contains("belongs to the user"))
        );
    }
}
