//! As the example of ecdysis has it: SIGHUP upgrades, each listener is a stream that ends when the successor is
//! ready. With a backlog and SO_REUSEADDR of its own, which its builder for sockets lets one choose; the
//! defaults are 128 and none.

use std::error::Error;
use std::sync::Arc;

use ecdysis::tokio_ecdysis::{SignalKind, StopOnShutdown, TokioEcdysisBuilder};
use futures::StreamExt as _;
use tokio::runtime::Runtime;
use web::{BACKLOG, Settings, Site};

fn main() -> Result<(), Box<dyn Error>> {
    let settings = Settings::read()?;
    Runtime::new()?.block_on(serve(&settings))
}

async fn serve(settings: &Settings) -> Result<(), Box<dyn Error>> {
    let mut builder = TokioEcdysisBuilder::new(SignalKind::hangup())?;
    builder.stop_on_signal(SignalKind::terminate())?;
    let listen = |address: &std::net::SocketAddr| {
        builder.build_listen_tcp(StopOnShutdown::Yes, *address, |socket, address| {
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG.cast_signed())?;
            Ok(socket.into())
        })
    };
    let streams = settings.addresses.iter().map(listen).collect::<Result<Vec<_>, _>>()?;
    let stalls = settings.work(!builder.is_child());
    let (_ecdysis, ended) = builder.ready()?;
    let site = Arc::new(Site::open(stalls));
    let accepting = streams.into_iter().map(|mut stream| {
        let site = Arc::clone(&site);
        tokio::spawn(async move {
            while let Some(accepted) = stream.next().await {
                if let Ok(accepted) = accepted {
                    site.serve(accepted);
                }
            }
        })
    });
    let accepting: Vec<_> = accepting.collect();
    ended.await?;
    for task in accepting {
        task.await?;
    }
    if let Some(site) = Arc::into_inner(site) {
        site.close().await;
    }
    Ok(())
}
