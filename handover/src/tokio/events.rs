//! What happens, as a stream.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use handover_proto::control::TimedEvent;

use crate::events::Events;

impl Stream for Events {
    type Item = TimedEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<TimedEvent>> {
        self.poll(cx)
    }
}
