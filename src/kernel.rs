//! The few calls to the kernel that the standard library does not make.

#![allow(unsafe_code, reason = "system calls that neither std nor tokio offers")]

use std::fs::File;
use std::os::fd::AsRawFd as _;

/// The effective user.
pub(crate) fn user_id() -> u32 {
    // SAFETY: geteuid takes nothing, touches no memory of ours and cannot fail.
    unsafe { libc::geteuid() }
}

/// Takes an exclusive advisory lock on an open file without waiting; false when another open file
/// holds it. The lock ends with the file, also when the process is killed.
pub(crate) fn try_lock(file: &File) -> std::io::Result<bool> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; flock reads and writes no
    // memory of ours.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    let error = std::io::Error::last_os_error();
    if error.kind() == std::io::ErrorKind::WouldBlock {
        Ok(false)
    } else {
        Err(error)
    }
}

/// Raises the number of files this process may have open to what the system allows it. Edges and
/// control have one for each connection.
pub(crate) fn raise_open_files() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit that outlives both calls; they keep no pointer to it.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_cur < limit.rlim_max
        {
            limit.rlim_cur = limit.rlim_max;
            // A refusal leaves the lower limit, with which the node works too.
            let _ = libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// Capabilities as `capset` takes them (`linux/capability.h`, version 3).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilitySets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// The right to listen on ports below 1024.
const CAP_NET_BIND_SERVICE: u32 = 10;
/// More than any kernel knows.
const CAPABILITIES_MAX: u32 = 64;

/// Becomes a user and its groups, for good in all but the saved user id, and keeps no capability
/// but the right to listen on low ports, in the bounding set too; nothing that this process
/// executes gains rights. Call it as root, while there is one thread.
pub(crate) fn become_user(uid: u32, gid: u32, groups: &[u32]) -> std::io::Result<()> {
    // SAFETY: prctl with these operations takes integers alone.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        for capability in (0..CAPABILITIES_MAX).filter(|c| *c != CAP_NET_BIND_SERVICE) {
            // A container may forbid it, and the kernel knows fewer: nothing can be executed with
            // more rights anyway.
            let _ = libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
        }
    }
    // SAFETY: the pointer and the length are those of a slice that outlives the call; the others
    // take integers alone.
    unsafe {
        check(libc::setgroups(groups.len(), groups.as_ptr()))?;
        check(libc::setresgid(gid, gid, gid))?;
        check(libc::setresuid(uid, uid, 0))?;
    }
    let mut sets = capabilities()?;
    let kept = sets[0].permitted & 1 << CAP_NET_BIND_SERVICE;
    sets = [
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: 0,
        },
        CapabilitySets::default(),
    ];
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    // SAFETY: capset reads one header and, at this version, two sets; both outlive the call. It
    // acts on this thread, the only one.
    check(
        unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) } as libc::c_int,
    )
}

/// Gives up the saved user id too, in every thread, and with it the last capability; from then on
/// there is no way back.
pub(crate) fn forget_root(uid: u32) -> std::io::Result<()> {
    let (mut real, mut effective, mut saved) = (0, 0, 0);
    // SAFETY: setresuid takes integers (the C library makes the call in every thread); getresuid
    // writes to three integers that outlive the call.
    unsafe {
        check(libc::setresuid(uid, uid, uid))?;
        check(libc::getresuid(&mut real, &mut effective, &mut saved))?;
    }
    let left = capabilities()?;
    let has_any = left
        .iter()
        .any(|sets| (sets.effective | sets.permitted) != 0);
    if [real, effective, saved] != [uid; 3] || has_any {
        return Err(std::io::Error::other("the system has left some of it"));
    }
    Ok(())
}

/// Becomes root again between [`become_user`] and [`forget_root`], to take back what root has made.
pub(crate) fn regain_root() -> std::io::Result<()> {
    const AS_IT_IS: libc::uid_t = libc::uid_t::MAX;
    // SAFETY: setresuid takes integers alone.
    check(unsafe { libc::setresuid(AS_IT_IS, 0, AS_IT_IS) })
}

fn capabilities() -> std::io::Result<[CapabilitySets; 2]> {
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let mut sets = [CapabilitySets::default(); 2];
    // SAFETY: capget reads one header and writes, at this version, two sets; both outlive the call.
    check(
        unsafe { libc::syscall(libc::SYS_capget, &raw const header, sets.as_mut_ptr()) }
            as libc::c_int,
    )?;
    Ok(sets)
}

fn check(result: libc::c_int) -> std::io::Result<()> {
    if result == -1 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(())
    }
}
