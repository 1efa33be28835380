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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use handover_proto::control::Event;

    use super::*;
    use crate::events::Hub;

    #[tokio::test]
    async fn a_stream_yields_what_is_published_and_ends() {
        let hub = Hub::new();
        let mut events = hub.subscribe();
        let reader = tokio::spawn(async move {
            let mut read = Vec::new();
            while let Some(timed) = poll_fn(|cx| Pin::new(&mut events).poll_next(cx)).await {
                read.push(timed.event);
                tokio::task::yield_now().await;
            }
            read
        });
        tokio::task::yield_now().await;
        hub.publish(Event::Gone { generation: 1 });
        tokio::task::yield_now().await;
        hub.publish(Event::Gone { generation: 2 });
        drop(hub);
        let expected = [1, 2].map(|generation| Event::Gone { generation });
        assert_eq!(reader.await.unwrap(), expected);
    }
}
