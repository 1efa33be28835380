//! Facts about each of the two machines by itself.

mod batching;
mod confirmation;
mod heartbeat;
mod line;
mod predecessor;
mod predecessor_endings;
mod returning;
mod stage;
mod stops;
mod successor;
mod successor_endings;
mod table;
