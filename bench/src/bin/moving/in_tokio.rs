//! The bare loop for streams of Tokio, each of which has a task that waits for something to come.

use std::error::Error;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use crate::bare::{BATCH, WINDOW, accept_all, receive, reply, send_and_wait};
use handover_bench::now;

pub(crate) fn give(connections: usize) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    let runtime = Runtime::new()?;
    let _inside = runtime.enter();
    let (go, gone) = watch::channel(false);
    let (leave, mut leaving) = mpsc::channel(WINDOW);
    let streams = accept_all(&listener, connections)?;
    let waiting = Arc::new(AtomicUsize::new(0));
    for stream in streams {
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream)?;
        let (mut gone, leave, waiting) = (gone.clone(), leave.clone(), Arc::clone(&waiting));
        tokio::spawn(async move {
            let mut buffer = Vec::new();
            waiting.fetch_add(1, Ordering::SeqCst);
            tokio::select! {
                // Nothing comes.
                _ = stream.read_buf(&mut buffer) => return,
                _ = gone.wait_for(|gone| *gone) => {}
            }
            if let Ok(stream) = stream.into_std() {
                // The receiver outlives all of these.
                let _ = leave.send(OwnedFd::from(stream)).await;
            }
        });
    }
    while waiting.load(Ordering::SeqCst) < connections {
        std::thread::yield_now();
    }
    println!("{}", now().as_nanos());
    go.send(true)?;
    let stdin = std::io::stdin();
    let next = || {
        let mut batch = Vec::new();
        batch.extend(leaving.blocking_recv());
        while batch.len() < BATCH
            && let Ok(stream) = leaving.try_recv()
        {
            batch.push(stream);
        }
        Ok(batch)
    };
    send_and_wait(stdin.as_fd(), connections, next)
}

pub(crate) fn take(connections: usize) -> Result<(), Box<dyn Error>> {
    let runtime = Runtime::new()?;
    let _inside = runtime.enter();
    let stdin = std::io::stdin();
    let mut taken = 0;
    while taken < connections {
        for (stream, bytes) in receive(stdin.as_fd())? {
            let stream = std::net::TcpStream::from(stream);
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream)?;
            tokio::spawn(async move {
                let mut buffer = bytes;
                stream.read_buf(&mut buffer).await
            });
            taken += 1;
        }
        reply(stdin.as_fd())?;
    }
    println!("{}", now().as_nanos());
    Ok(())
}
