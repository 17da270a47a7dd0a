//! The ring of cells of one key.

use std::collections::VecDeque;

use crate::fleet_state::series::counts::{Counts, VALUES};
use crate::fleet_state::series::resolution::{COARSE, NODE_SECONDS_KEPT, SECONDS_KEPT};

/// The subject of a ring of counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Total,
    Cluster(String),
    Site(String),
    Node(String),
}

/// A second.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cell {
    /// Whether a report covers the second.
    pub(super) is_known: bool,
    pub(super) counts: Counts,
}

/// Consecutive cells of the same length, up to the newest one.
#[derive(Debug, Default)]
pub(super) struct Row<T> {
    /// Number of the first cell: its time divided by the length of a cell.
    pub(super) first: u64,
    pub(super) cells: VecDeque<T>,
}

impl<T: Copy + Default> Row<T> {
    /// The cell of a number, created when missing; `None` when it is too old to be kept.
    pub(super) fn cell_mut(&mut self, number: u64, kept: usize) -> Option<&mut T> {
        if self.cells.is_empty() {
            self.first = number;
        }
        if number < self.first {
            let missing = self.first - number;
            if missing + self.cells.len() as u64 > kept as u64 {
                return None;
            }
            // Reports of another node may reach further back.
            for _ in 0..missing {
                self.cells.push_front(T::default());
            }
            self.first = number;
        }
        if number - self.first >= (self.cells.len() + kept) as u64 {
            // All cells are too old.
            self.cells.clear();
            self.first = number;
        }
        while self.first + self.cells.len() as u64 <= number {
            self.cells.push_back(T::default());
        }
        while self.cells.len() > kept {
            self.cells.pop_front();
            self.first += 1;
        }
        self.cells.get_mut((number - self.first) as usize)
    }

    /// The cell of a number; the default when it is not kept.
    pub(super) fn cell(&self, number: u64) -> T {
        number
            .checked_sub(self.first)
            .and_then(|i| self.cells.get(i as usize))
            .copied()
            .unwrap_or_default()
    }
}

/// A cell of a coarser resolution.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct CoarseCell {
    /// Number of its seconds that are known.
    pub(super) seconds: u16,
    pub(super) values: [f32; VALUES],
}

/// The counts of one key, in all resolutions.
#[derive(Debug, Default)]
pub(super) struct Ring {
    pub(super) seconds: Row<Cell>,
    /// In the order of [`COARSE`].
    pub(super) coarse: [Row<CoarseCell>; COARSE.len()],
    pub(super) since_start: Counts,
    /// The oldest second that has changed since the last write.
    pub(super) changed: Option<u64>,
}

impl Ring {
    /// Adds a share of counts to a second.
    pub(super) fn add(&mut self, second: u64, counts: &Counts, share: f64, is_node: bool) {
        let mut cell = self.seconds.cell(second);
        cell.is_known = true;
        cell.counts.add(counts, share);
        self.set(second, cell, is_node);
    }

    /// Replaces a second and adapts the coarser cells.
    pub(super) fn set(&mut self, second: u64, cell: Cell, is_node: bool) {
        let kept = if is_node {
            NODE_SECONDS_KEPT
        } else {
            SECONDS_KEPT
        };
        let Some(slot) = self.seconds.cell_mut(second, kept as usize) else {
            return;
        };
        let before = std::mem::replace(slot, cell);
        if is_node {
            return;
        }
        self.changed = Some(self.changed.map_or(second, |oldest| oldest.min(second)));
        for (row, (step, kept)) in self.coarse.iter_mut().zip(COARSE) {
            let Some(coarse) = row.cell_mut(second / step, kept) else {
                continue;
            };
            coarse.seconds = (coarse.seconds + u16::from(cell.is_known))
                .saturating_sub(u16::from(before.is_known));
            for ((sum, new), old) in coarse
                .values
                .iter_mut()
                .zip(cell.counts.values())
                .zip(before.counts.values())
            {
                *sum = (*sum + (new - old) as f32).max(0.0);
            }
        }
    }

    /// The counts of a cell, `step` seconds long. A cell that is known in part is scaled up to the
    /// whole; `None` when nothing of it is known.
    pub(super) fn counts(&self, number: u64, step: u64) -> Option<Counts> {
        let Some(index) = COARSE.iter().position(|(s, _)| *s == step) else {
            let cell = self.seconds.cell(number);
            return cell.is_known.then_some(cell.counts);
        };
        let cell = self.coarse[index].cell(number);
        if cell.seconds == 0 {
            return None;
        }
        let whole = step as f64 / f64::from(cell.seconds);
        Some(Counts::of_values(cell.values.map(|v| f64::from(v) * whole)))
    }
}
