//! The mistakes in a fleet file, each with its place and a hint.

use std::cell::{Cell, RefCell};

/// One mistake in a fleet file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// 1-based.
    pub line: usize,
    /// 1-based, in characters.
    pub column: usize,
    /// What is wrong, with the dotted path of the setting (`cluster[1].node[0].listen: ...`).
    pub problem: String,
    /// What to write instead.
    pub hint: String,
}

/// The mistakes found so far, and where lines begin.
pub(super) struct Mistakes<'t> {
    text: &'t str,
    line_starts: Vec<usize>,
    /// A byte in the text, and the characters before it in its line.
    counted: Cell<(usize, usize)>,
    found: RefCell<Vec<(usize, Mistake)>>,
}

impl<'t> Mistakes<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let line_starts = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        Self {
            text,
            line_starts,
            counted: Cell::default(),
            found: RefCell::default(),
        }
    }

    /// Notes a mistake at a byte of the text.
    pub(super) fn note(&self, at: usize, problem: impl Into<String>, hint: impl Into<String>) {
        let line = self
            .line_starts
            .partition_point(|start| *start <= at)
            .max(1);
        let start = self.line_starts[line - 1];
        // Counted on from the last mistake of the line, as a line may have a hundred thousand.
        let (counted_to, counted) = match self.counted.get() {
            (to, chars) if (start..=at).contains(&to) => (to, chars),
            _ => (start, 0),
        };
        let chars = counted
            + self
                .text
                .get(counted_to..at)
                .map_or(0, |between| between.chars().count());
        self.counted.set((at, chars));
        let column = chars + 1;
        self.found.borrow_mut().push((
            at,
            Mistake {
                line,
                column,
                problem: problem.into(),
                hint: hint.into(),
            },
        ));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.borrow().is_empty()
    }

    /// All of them in file order.
    pub(super) fn into_sorted(self) -> Vec<Mistake> {
        let mut found = self.found.into_inner();
        found.sort_by_key(|(at, _)| *at);
        found.into_iter().map(|(_, mistake)| mistake).collect()
    }

    /// What a section starts with in words: `line 12`.
    pub(super) fn line_of(&self, at: usize) -> usize {
        self.line_starts
            .partition_point(|start| *start <= at)
            .max(1)
    }
}

/// Mistakes for people, one a line: `FILE:LINE:COLUMN: PROBLEM; HINT`.
pub fn describe(file: &str, mistakes: &[Mistake]) -> String {
    let lines = mistakes
        .iter()
        .map(|m| format!("{file}:{}:{}: {}; {}", m.line, m.column, m.problem, m.hint));
    lines.collect::<Vec<_>>().join("\n")
}
