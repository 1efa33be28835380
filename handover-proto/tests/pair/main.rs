//! Both machines together, on virtual time, over a channel and with processes that fail.

mod act;
mod channel;
mod chaos;
mod crashes;
mod garbage;
mod hangs;
mod normal;
mod pair;
mod process;
mod rng;
