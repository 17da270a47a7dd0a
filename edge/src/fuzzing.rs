//! Entry points of the fuzz targets. Nothing else uses them, and they may change at any time.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;

use crate::body::Content;
use crate::stored::response::Recovered;
use nearcast_store::{DiskConfig, FUZZ_NAME, Group, Pool, Store, StoreConfig};

pub use crate::serve::http1::head::fuzz_head;
pub use crate::serve::http3::fuzz_http3;
pub use nearcast_store::{fuzz_record, fuzz_store_files};

/// Slices that a scan reads of each body.
const SLICES_READ: u32 = 4;
const OWNER: u128 = 1;

/// A body that the store found on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScannedBody {
    /// Its number.
    pub id: u64,
    /// Its opaque description.
    pub head: Bytes,
    /// Its first slices, as far as they can be read.
    pub slices: Vec<Option<Bytes>>,
}

/// Opens a store on a directory whose files may hold anything, and reads what it finds. Then stores
/// a body with the given head and slice, unless there is none.
pub fn scan_store(directory: &Path, new_body: Option<(Bytes, Bytes)>) -> Vec<ScannedBody> {
    let (store, _gone) = Store::open(&StoreConfig {
        memory_bytes: 1 << 20,
        disk: Some(DiskConfig {
            directory: directory.to_owned(),
            pull_bytes: 16 << 20,
            pushed_bytes: 0,
        }),
    });
    store.wait_until_loaded();
    let loading = store.load(FUZZ_NAME, OWNER, &[]);
    let loaded = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime")
        .block_on(loading);
    let read = |body| {
        (0..SLICES_READ)
            .map(|index| store.read_blocking(body, index))
            .collect()
    };
    let found = loaded
        .iter()
        .map(|found| ScannedBody {
            id: found.body.id.0,
            head: found.head.clone(),
            slices: read(&found.body),
        })
        .collect();

    if let Some((head, slice)) = new_body {
        let body = store.new_body(OWNER, Pool::Pull);
        store.put(&body, 0, slice);
        store.put_head(&body, FUZZ_NAME, Group::OTHER, head);
        store.flush();
    }
    found
}

/// Decodes a stored response as it is written beside its slices, and encodes it again. `None` when
/// it is not one.
pub fn reencode_stored_response(head: &[u8]) -> Option<Bytes> {
    static STORE: LazyLock<Arc<Store>> = LazyLock::new(|| {
        let config = StoreConfig {
            memory_bytes: 1 << 20,
            disk: None,
        };
        Arc::new(Store::open(&config).0)
    });
    let recovered = Recovered::decode(head, |site| site.into())?;
    let content = Content::new(
        STORE.clone(),
        STORE.new_body(OWNER, Pool::Pull),
        recovered.length,
        recovered.validator,
    );
    Some(recovered.parts.store(content).encode())
}
