//! How many connections there may be at a time.

use std::sync::Arc;
use std::task::{Context, Poll};

use crate::watch::{Seat, Watch};

/// How many connections there may be, and are.
#[derive(Clone, Debug)]
pub(super) struct Limit(Arc<Counted>);

#[derive(Debug)]
struct Counted {
    most: usize,
    open: Watch<usize>,
}

/// A connection that counts.
#[derive(Debug)]
pub(super) struct Place(Limit);

impl Limit {
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Counted { most, open: Watch::new(0) }))
    }

    /// Counts a connection, also if it is one too many.
    pub(super) fn enter(&self) -> Place {
        self.0.open.update(|open| *open += 1);
        Place(self.clone())
    }

    /// Comes when there may be another one.
    pub(super) fn poll(&self, seat: &mut Seat, cx: &Context<'_>) -> Poll<()> {
        self.0.open.poll(seat, cx, |open| (*open < self.0.most).then_some(()))
    }

    pub(super) fn leave(&self, seat: &mut Seat) {
        self.0.open.leave(seat);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.open.update(|open| *open -= 1);
    }
}
