//! Sizes and places of a store.

use std::path::PathBuf;

/// How a store is laid out.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Bytes of slices kept in memory.
    pub memory_bytes: u64,
    /// The disk tier; `None` keeps everything in memory.
    pub disk: Option<DiskConfig>,
}

/// How the disk tier is laid out.
#[derive(Debug, Clone)]
pub struct DiskConfig {
    /// Directory of its files. It is made when it is missing.
    pub directory: PathBuf,
    /// Bytes for bodies that clients pulled.
    pub pull_bytes: u64,
    /// Bytes for bodies that were pushed.
    pub pushed_bytes: u64,
}
