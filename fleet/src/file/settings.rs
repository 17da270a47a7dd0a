//! The names of a section's settings, present and former.

/// The names of a section's settings.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    /// Registry in use.
    pub(super) names: &'static [&'static str],
    /// Former name and present name of renamed settings. A former name works for one release.
    pub(super) former: &'static [(&'static str, &'static str)],
}

impl Settings {
    /// Settings of which none was renamed.
    pub(super) const fn of(names: &'static [&'static str]) -> Self {
        Self { names, former: &[] }
    }

    /// Adds former names, as pairs of former and present name.
    pub(super) const fn with_former(self, former: &'static [(&'static str, &'static str)]) -> Self {
        Self { former, ..self }
    }

    /// The present name of a setting that the file calls by a former name.
    pub(super) fn present_name(&self, written: &str) -> Option<&'static str> {
        let mut renamed = self.former.iter();
        renamed
            .find(|(former, _)| *former == written)
            .map(|(_, present)| *present)
    }

    /// The former name of a renamed setting.
    pub(super) fn former_name(&self, name: &str) -> Option<&'static str> {
        let mut renamed = self.former.iter();
        renamed
            .find(|(_, present)| *present == name)
            .map(|(former, _)| *former)
    }
}
