//! The programs, really run: through pipes, and `chat` on a pseudo-terminal.
//!
//! Everything under `kafka` needs a real Kafka, under `secured` a secured one, under
//! `unserved` Kafka 4 and a build for which that is too new, and under `tools` kcat or
//! Python; `scripts/test-kafka` starts what they need and runs them. `scripts/test-faults` runs what
//! is under `faults::full` and `faults::soak`.

// A test that meets the unexpected has failed.
#![allow(clippy::unwrap_used)]
// What a test prints, its runner takes care of.
#![allow(clippy::disallowed_macros, clippy::print_stdout)]

mod bad_input;
mod chatting;
mod faults;
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
mod unserved;
