//! One short program for each way of using the library, from its folder of examples.
//!
//! Each can be run and upgraded: `cargo run --example echo`, then `kill -HUP` its process.

#[cfg(feature = "http")]
#[doc = include_str!("guide/http.md")]
#[doc = concat!("```rust,ignore\n", include_str!("../examples/http.rs"), "```")]
pub mod http {}

#[cfg(feature = "http")]
#[doc = include_str!("guide/https.md")]
#[doc = concat!("```rust,ignore\n", include_str!("../examples/https.rs"), "```")]
pub mod https {}

#[cfg(feature = "tokio")]
#[doc = include_str!("guide/echo.md")]
#[doc = concat!("```rust,ignore\n", include_str!("../examples/echo.rs"), "```")]
pub mod echo {}

#[cfg(feature = "tokio")]
#[doc = include_str!("guide/chat.md")]
#[doc = concat!("```rust,ignore\n", include_str!("../examples/chat.rs"), "```")]
pub mod chat {}

#[doc = include_str!("guide/echo_blocking.md")]
#[doc = concat!("```rust,ignore\n", include_str!("../examples/echo_blocking.rs"), "```")]
pub mod echo_blocking {}

#[cfg(feature = "serde")]
#[doc = include_str!("guide/state.md")]
#[doc = concat!("```rust,ignore\n", include_str!("../examples/state.rs"), "```")]
pub mod state {}

#[cfg(all(feature = "axum", feature = "serde"))]
#[doc = include_str!("guide/metrics.md")]
#[doc = concat!("```rust,ignore\n", include_str!("../examples/metrics.rs"), "```")]
pub mod metrics {}

#[doc = include_str!("guide/probation.md")]
#[doc = concat!("```rust,ignore\n", include_str!("../examples/probation.rs"), "```")]
pub mod probation {}

#[doc = include_str!("guide/control.md")]
#[doc = concat!("```rust,ignore\n", include_str!("../examples/control.rs"), "```")]
pub mod control {}
