//! Responses whose head is on disk only: a request that does not find one in the index has it read
//! and put there. Requests for one key share the reading.
//!
//! A removal comes first in the store's directory and then in the index. A response that is read
//! comes first into the index, where no request uses it yet, and is usable once the directory has
//! been asked again. So one of the two sees the other, and what was removed stays removed.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use futures_util::FutureExt as _;
use nearcast_fleet::scope;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::generations::PurgeState;
use super::index::{HashedKey, Variants};
use super::response::{Recovered, StoredResponse};
use crate::body::Content;
use crate::edge::Edge;
use nearcast_store::{BodyId, FoundBody};

/// The keys that are being read.
#[derive(Debug, Default)]
pub(crate) struct Loads(Mutex<HashMap<u128, Result, BuildHasherDefault<HashedKey>>>);

/// What a reading has brought, once it has ended.
type Result = watch::Receiver<Option<Loaded>>;
type Loaded = Arc<[Arc<StoredResponse>]>;

/// Ends a reading, whatever becomes of its task.
struct Loading {
    edge: Arc<Edge>,
    hash: u128,
    result: watch::Sender<Option<Loaded>>,
}

impl Drop for Loading {
    fn drop(&mut self) {
        self.edge.loads.0.lock().remove(&self.hash);
        self.result
            .send_modify(|result| *result = Some(result.take().unwrap_or_default()));
    }
}

/// The name of a key on disk: its URL in the form that purges compare, so that a purge of a URL finds
/// every spelling.
pub(crate) fn disk_name(url: &str) -> Cow<'_, str> {
    scope::canonical_key(url)
}

/// Puts the responses of a key that are on disk only into the index, and gives them: memory may be
/// so short that they leave it at once.
pub(crate) async fn load(edge: &Arc<Edge>, url: &str, hash: u128) -> Option<Variants> {
    let resident = || -> Vec<BodyId> {
        let variants = edge.index.variants(hash);
        let of_url = variants.iter().flat_map(|variants| variants.iter());
        of_url.map(|response| response.content.body.id).collect()
    };
    if !edge.store.may_have(&disk_name(url)) {
        return None;
    }
    // Any number of requests may select none of many variants.
    let known = resident();
    if !known.is_empty() && !edge.store.may_have_others(&disk_name(url), &known) {
        return None;
    }
    let mut result = {
        let mut running = edge.loads.0.lock();
        match running.get(&hash) {
            Some(result) => result.clone(),
            None => {
                let (sender, result) = watch::channel(None);
                running.insert(hash, result.clone());
                let loading = Loading {
                    edge: edge.clone(),
                    hash,
                    result: sender,
                };
                drop(running);
                let mut reading = Box::pin(read(loading, url.to_owned(), known));
                // What is in the page cache is there at once. Otherwise a task of its own, so that it
                // goes on for the others when the first one leaves.
                if reading.as_mut().now_or_never().is_none() {
                    tokio::spawn(reading);
                }
                result
            }
        }
    };
    let loaded = result.wait_for(Option::is_some).await.ok()?.clone()?;
    // One that has left memory since is not found by a removal.
    let kept = loaded
        .iter()
        .filter(|response| edge.store.has_head(&response.content.body));
    Variants::of(kept.cloned().collect())
}

async fn read(loading: Loading, url: String, known: Vec<BodyId>) {
    let edge = &loading.edge;
    let name = disk_name(&url);
    let found = edge.store.load(&name, loading.hash, &known).await;
    let loaded = found
        .into_iter()
        .filter_map(|found| publish(edge, &url, found))
        .collect();
    loading.result.send_replace(Some(loaded));
}

/// Puts one response into the index. `None` where it may not be used, or it or a newer one is there.
fn publish(edge: &Arc<Edge>, url: &str, found: FoundBody) -> Option<Arc<StoredResponse>> {
    let FoundBody {
        body,
        head,
        is_of_earlier_run,
        is_doubtful,
    } = found;
    let site = |name: &str| match edge.sites.load().of_name(name) {
        Some(site) => site.name.clone(),
        None => name.into(),
    };
    let Some(mut recovered) = Recovered::decode(&head, site) else {
        edge.store.forget(&body);
        return None;
    };
    // Another spelling of the URL, which is a key of its own, or another key with the same hash.
    if recovered.parts.head.url() != url {
        return None;
    }
    recovered.parts.is_recovered = is_of_earlier_run;
    recovered.parts.is_doubtful = is_doubtful;
    let length = recovered.length;
    let can_be_completed = length.is_some() && recovered.validator.is_some();

    let store = edge.store.clone();
    let content = Content::new(store, body, length, recovered.validator);
    if !can_be_completed && !length.is_some_and(|length| content.has(0, length)) {
        content.discard();
        return None;
    }
    let response = recovered.parts.loading(content);
    if response.purge_state_of_loading(&edge.generations) == PurgeState::Gone {
        response.content.discard();
        return None;
    }
    if !edge.publish_loaded(&response) {
        return None;
    }
    if !edge.store.has_head(&response.content.body) || edge.changes.have_covered_on_disk(&response)
    {
        edge.unpublish(&response);
        return None;
    }
    response.end_loading();
    Some(response)
}
