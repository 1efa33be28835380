//! Telling systemd, in order and without waiting for it.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::sys::file;
use crate::sys::notify::NotifySocket;
use crate::sys::poll::{Interest, Poller, Wake};

/// What systemd is told by this process, from any thread.
///
/// While this process is not the main process of the service nothing is said: it would be ignored, or
/// under `NotifyAccess=all` be taken for the word of the one that is.
#[derive(Debug)]
pub(crate) struct Notifier {
    voice: AtomicU8,
    out: Mutex<Out>,
    wake: Arc<Wake>,
}

/// Whether systemd hears this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Voice {
    /// Not yet: another process is the main one.
    Expected,
    /// It is the main process.
    Main,
    /// Not any more.
    Former,
}

#[derive(Debug)]
struct Out {
    socket: NotifySocket,
    /// What systemd's queue has not taken yet. It grows by what happens, not by time: hints are not
    /// in it.
    queue: VecDeque<Message>,
    /// Whether the poller tells when there is room.
    is_watched: bool,
    /// When to try again although there is room.
    retry: Option<Instant>,
}

/// How long to leave the kernel alone that has too many descriptors of this user in flight.
const QUOTA_PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug)]
struct Message {
    text: String,
    descriptor: Option<OwnedFd>,
}

impl Notifier {
    pub(crate) fn connect(address: &OsStr, voice: Voice, wake: &Arc<Wake>) -> io::Result<Self> {
        let socket = NotifySocket::connect(address)?;
        let out = Out { socket, queue: VecDeque::new(), is_watched: false, retry: None };
        Ok(Self { voice: AtomicU8::new(voice as u8), out: Mutex::new(out), wake: Arc::clone(wake) })
    }

    pub(crate) fn is_main(&self) -> bool {
        self.voice.load(Ordering::SeqCst) == Voice::Main as u8
    }

    /// Whether systemd is going to hear this process.
    pub(crate) fn is_expected(&self) -> bool {
        self.voice.load(Ordering::SeqCst) == Voice::Expected as u8
    }

    /// systemd hears this process, from here on.
    pub(crate) fn become_main(&self) {
        self.voice.store(Voice::Main as u8, Ordering::SeqCst);
    }

    /// Says it, with the descriptor, after what was said before; returns whether, which only the main
    /// process does.
    pub(crate) fn say(&self, text: impl Into<String>, descriptor: Option<OwnedFd>) -> bool {
        let mut out = self.out();
        // Under the lock: nothing comes after the last word.
        let is_main = self.is_main();
        if is_main {
            self.push(&mut out, text.into(), descriptor);
        }
        is_main
    }

    /// Says it if systemd takes it at once; returns whether. For what is said again soon.
    pub(crate) fn hint(&self, text: &str) -> bool {
        let mut out = self.out();
        self.is_main() && out.queue.is_empty() && out.socket.send(text.as_bytes(), &[]).is_ok()
    }

    /// Says these last words of the main process, and returns what is closed at the other end when
    /// systemd has done all that was said.
    pub(crate) fn say_last(&self, words: impl IntoIterator<Item = String>) -> io::Result<OwnedFd> {
        let mut out = self.out();
        for text in words {
            self.push(&mut out, text, None);
        }
        self.voice.store(Voice::Former as u8, Ordering::SeqCst);
        let (reader, writer) = file::pipe()?;
        self.push(&mut out, "BARRIER=1".into(), Some(writer));
        Ok(reader)
    }

    /// Whether systemd's queue has taken everything.
    pub(crate) fn is_flushed(&self) -> bool {
        self.out().queue.is_empty()
    }

    /// Sends what the queue takes now, and has the poller tell when it takes more.
    pub(crate) fn flush(&self, poller: &Poller) {
        let mut out = self.out();
        if out.flush() {
            // The new one is not watched.
            out.is_watched = false;
        }
        let wanted = !out.queue.is_empty() && out.retry.is_none();
        if wanted == out.is_watched {
            return;
        }
        if !wanted {
            poller.remove(&out.socket);
        } else if let Err(error) = poller.add(&out.socket, Interest::Write) {
            tracing::warn!(%error, "the notify socket is not watched");
            return;
        }
        out.is_watched = wanted;
    }

    /// When to flush again if nothing happens.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.out().retry
    }

    fn push(&self, out: &mut Out, text: String, descriptor: Option<OwnedFd>) {
        out.queue.push_back(Message { text, descriptor });
        if out.flush() {
            out.is_watched = false;
        }
        if !out.queue.is_empty() {
            // The waiter flushes the rest.
            self.wake.set();
        }
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Out {
    /// Returns whether the socket is another one now.
    fn flush(&mut self) -> bool {
        self.retry = None;
        let mut is_new = false;
        while let Some(Message { text, descriptor }) = self.queue.front() {
            let descriptors: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
            let sent = self.socket.send(text.as_bytes(), &descriptors);
            is_new |= self.socket.is_new();
            match sent {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return is_new,
                Err(e) if e.kind() == io::ErrorKind::QuotaExceeded => {
                    self.retry = Some(Instant::now() + QUOTA_PAUSE);
                    return is_new;
                }
                Err(error) => tracing::warn!(text, %error, "systemd cannot be told"),
                Ok(()) => {}
            }
            self.queue.pop_front();
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use handover_testkit::Folder;

    use super::*;
    use crate::sys::poll::is_readable;

    #[test]
    fn what_does_not_fit_is_said_later_and_in_order() {
        let folder = Folder::create();
        let path = folder.join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let (poller, wake) = (Poller::new().unwrap(), Arc::new(Wake::new().unwrap()));
        let notifier = Notifier::connect(path.as_os_str(), Voice::Main, &wake).unwrap();
        const MESSAGES: usize = 2000;
        for number in 0..MESSAGES {
            assert!(notifier.say(format!("{number}"), None));
        }
        assert!(!notifier.is_flushed());
        assert!(!notifier.hint("between"), "it would overtake");
        assert!(is_readable(wake.as_fd()), "the waiter is to flush the rest");
        let mut buffer = [0; 16];
        for number in 0..MESSAGES {
            notifier.flush(&poller);
            let bytes = manager.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..bytes], number.to_string().as_bytes());
            if !notifier.is_flushed() {
                assert!(is_readable(poller.as_fd()), "there is room for more");
            }
        }
        assert!(notifier.is_flushed());
    }

    #[test]
    fn who_is_not_the_main_process_is_silent() {
        let folder = Folder::create();
        let path = folder.join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let wake = Arc::new(Wake::new().unwrap());
        let notifier = Notifier::connect(path.as_os_str(), Voice::Expected, &wake).unwrap();
        let silent = || {
            assert!(!notifier.say("STOPPING=1", None));
            assert!(!notifier.hint("WATCHDOG=1"));
            assert!(manager.recv(&mut [0; 16]).is_err());
        };
        silent();
        notifier.become_main();
        assert!(notifier.say("READY=1", None));
        let barrier = notifier.say_last(["MAINPID=1".into()]).unwrap();
        for word in ["READY=1", "MAINPID=1", "BARRIER=1"] {
            let mut buffer = [0; 16];
            let bytes = manager.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..bytes], word.as_bytes());
        }
        // A plain receive takes no descriptors: they are closed.
        assert!(crate::sys::poll::look(&[barrier.as_fd()]).unwrap()[0].hung_up);
        silent();
    }
}
