//! Both machines together, on virtual time, over a channel and with processes that fail.

mod act;
mod channel;
mod chaos;
mod crashes;
mod garbage;
mod hangs;
mod normal;
mod pair;
mod probation;
mod process;
mod releases;
mod rng;
mod rollbacks;
mod stops;
mod transcripts;
mod versions;
