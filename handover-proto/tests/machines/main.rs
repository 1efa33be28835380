//! Facts about each of the two machines by itself.

mod batching;
mod predecessor;
mod predecessor_endings;
mod stage;
mod successor;
mod successor_endings;
mod table;
