//! The coded forms of a representation: each a content of its own, made from this one, found through
//! it, and discarded with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwapOption, Guard};
use parking_lot::Mutex;

use super::content::Content;
use super::writer::FillWriter;
use nearcast_store::Pool;

/// Codings that a representation may have.
const CODINGS: usize = nearcast_http_rules::compress::CODINGS.len();
/// Memory that a coded form takes beside its slices: its entry here and the head of its responses.
const FORM_BYTES: u32 = 1500;

/// The coded forms of one representation, by the number of their coding.
#[derive(Debug, Default)]
pub(super) struct CodedForms {
    forms: [ArcSwapOption<Content>; CODINGS],
    /// Codings in which the body is not shorter.
    is_refused: [AtomicBool; CODINGS],
    /// Held while a form is begun or removed.
    changing: Mutex<()>,
}

/// What [`Content::begin_coded`] finds.
pub(crate) enum BeginCoded {
    /// Another request has begun it.
    Begun(Arc<Content>),
    /// The caller is to write it.
    New(FillWriter),
    /// The body is not shorter in this coding.
    Refused,
}

impl Content {
    /// The coded form of that number, if it has been begun. Its slices may have been evicted since.
    pub(crate) fn coded(&self, number: usize) -> Option<Guard<Option<Arc<Self>>>> {
        Some(self.coded_forms()?.forms[number].load())
    }

    /// The coded form of that number, if it can be read from its begin to its end.
    pub(crate) fn usable_coded(&self, number: usize) -> Option<Arc<Self>> {
        let form = (*self.coded(number)?).clone()?;
        form.is_usable().then_some(form)
    }

    /// Whether the body is known not to be shorter in that coding.
    pub(crate) fn is_coded_refused(&self, number: usize) -> bool {
        self.coded_forms()
            .is_some_and(|forms| forms.is_refused[number].load(Ordering::Relaxed))
    }

    /// Begins a coded form, unless it is there or being made: of all that ask at once, one gets the
    /// writer.
    pub(crate) fn begin_coded(&self, number: usize) -> BeginCoded {
        let forms = self.coded_forms_to_fill();
        let _changing = forms.changing.lock();
        if forms.is_refused[number].load(Ordering::Relaxed) {
            return BeginCoded::Refused;
        }
        let slot = &forms.forms[number];
        if let Some(form) = slot.load_full() {
            if form.is_usable() {
                return BeginCoded::Begun(form);
            }
            // A part of it was evicted. What is left differs from the bytes of a new one.
            form.discard();
        }

        let body = self.store().new_body(self.body.owner, Pool::Pull);
        self.store().account_head(&body, FORM_BYTES);
        let form = Self::new(self.store().clone(), body, None, None);
        if self.is_discarded() {
            form.discard();
        }
        let fill = form.begin_fill(0, None);
        slot.store(Some(form.clone()));
        BeginCoded::New(FillWriter::new(form, fill, false))
    }

    /// Notes that a coded form is not shorter, and removes it: it serves its present readers only.
    pub(crate) fn refuse_coded(&self, number: usize, form: &Arc<Self>) {
        if let Some(forms) = self.coded_forms() {
            forms.is_refused[number].store(true, Ordering::Relaxed);
        }
        self.remove_coded(number, form);
    }

    /// Removes a coded form, if it is still this one.
    pub(crate) fn remove_coded(&self, number: usize, form: &Arc<Self>) {
        let Some(forms) = self.coded_forms() else {
            return;
        };
        let _changing = forms.changing.lock();
        let slot = &forms.forms[number];
        if slot
            .load()
            .as_ref()
            .is_some_and(|now| Arc::ptr_eq(now, form))
        {
            slot.store(None);
        }
        form.discard();
    }

    /// Has the slices of all coded forms forgotten with their last users.
    pub(super) fn discard_coded(&self) {
        let Some(forms) = self.coded_forms() else {
            return;
        };
        let _changing = forms.changing.lock();
        for form in &forms.forms {
            if let Some(form) = form.load_full() {
                form.discard();
            }
        }
    }

    /// Names the bytes of a coded form: no number is given twice.
    pub(crate) fn form_id(&self) -> u64 {
        // Odd, so that different bodies have different numbers; their upper bits are all mixed.
        self.body.id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16
    }

    fn is_usable(&self) -> bool {
        self.is_filling() || self.length().is_some_and(|length| self.has(0, length))
    }
}
