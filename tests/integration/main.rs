//! The programs, really run: through pipes, and `chat` on a pseudo-terminal.
//!
//! Everything under `kafka` needs a real Kafka, everything under `tools` kcat or Python;
//! `scripts/test-kafka` starts what they need and runs them.

mod kafka;
mod one_way;
mod support;
