//! Files in control's directory that outlive the process and may be lost: the state log and the
//! time series.

pub(crate) mod record_file;
pub(crate) mod series_file;
pub(crate) mod state_log;
