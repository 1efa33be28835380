//! The user's wish to end early.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How often the user has asked to stop: once to end in order, twice to end now.
#[derive(Clone, Debug)]
pub(crate) struct Stop(watch::Receiver<u32>);

impl Stop {
    /// Listens for Ctrl-C and for a request to terminate.
    pub(crate) fn on_signals() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        let (mut interrupt, mut terminate) =
            (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
        let (times, stop) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                times.send_modify(|times| *times += 1);
            }
        });
        Ok(Self(stop))
    }

    /// Waits until the user asks to stop.
    pub(crate) async fn asked(&mut self) {
        self.asked_times(1).await;
    }

    /// Waits until the user asks to stop for the second time.
    pub(crate) async fn insisted(&mut self) {
        self.asked_times(2).await;
    }

    async fn asked_times(&mut self, wanted: u32) {
        // The sender lives as long as the runtime.
        if self.0.wait_for(|times| *times >= wanted).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
