//! Many rounds.
