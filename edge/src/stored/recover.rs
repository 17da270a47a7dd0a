//! Restores the stored responses of an earlier run from the disk.

use std::sync::Arc;

use super::index::Index;
use super::response::{Recovered, StoredResponse};
use crate::body::Content;
use crate::store::Store;

/// Hands every restored response to `publish` and returns how many there were. A body that is
/// neither whole nor can be completed by range requests is dropped. Blocking.
pub(crate) fn recover(
    store: &Arc<Store>,
    index: &Index,
    mut publish: impl FnMut(&Arc<StoredResponse>),
) -> usize {
    let decode = |head: &[u8]| Recovered::decode(head, |url| index.hash(url));
    let owner_of = |_, head: &[u8]| decode(head).map(|recovered| recovered.parts.hash);
    let mut count = 0;

    store.recover(owner_of, |found| {
        let Some(recovered) = decode(&found.head) else {
            return;
        };
        let content = Content::new(
            store.clone(),
            found.body,
            recovered.length,
            recovered.validator,
        );
        let is_whole = content
            .length()
            .is_some_and(|length| content.has(0, length));
        let can_be_completed = content.validator.is_some() && content.length().is_some();

        let response = recovered.parts.store(content.clone());
        if is_whole || can_be_completed {
            publish(&response);
            count += 1;
        } else {
            content.discard();
        }
    });
    count
}
