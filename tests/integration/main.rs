//! The programs, really run: through pipes, and `chat` on a pseudo-terminal.
//!
//! Everything under `kafka` needs a real Kafka, under `secured` a secured one, under
//! `without_librdkafka` Kafka 4 and a build for which that is too new, and under `tools` kcat or
//! Python; `scripts/test-kafka` starts what they need and runs them.

// A test that meets the unexpected has failed.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod chatting;
mod hosting;
mod kafka;
mod one_way;
mod others;
#[cfg(feature = "librdkafka")]
mod secured;
mod support;
mod tools;
mod tty;
#[cfg(not(feature = "librdkafka"))]
mod without_librdkafka;
