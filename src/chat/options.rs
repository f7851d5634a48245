//! How a chat is to behave: the options of `chat`.

use std::time::Duration;

use clap::Args;

use super::Parties;
use crate::cli::{ChatSecret, Delivery};
use crate::error::Result;
use crate::name::Name;
use crate::seal::Secret;
use crate::terminal;

/// How many lines of both sides a chat on a terminal opens with.
const EARLIER_LINES: u64 = 10;

/// Which lines are shown, and how; how those of the user are sent.
#[derive(Args, Debug)]
pub struct Options {
    /// Show lines that carry no name, too
    #[arg(long)]
    unsigned: bool,

    /// Talk with the tutorial's chat.py, which swaps the topics and signs nothing
    #[arg(long)]
    tutorial: bool,

    /// Ring the terminal's bell for PEER's messages, once for each burst
    #[arg(long)]
    pub(super) bell: bool,

    /// Open with the last N lines of both sides; 10 on a terminal, 0 elsewhere, if left out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=1000))]
    last: Option<u64>,

    /// Show the local time before each message
    #[arg(long = "time")]
    pub(super) with_time: bool,

    #[command(flatten)]
    delivery: Delivery,

    #[command(flatten)]
    pub(super) seal: ChatSecret,
}

impl Options {
    /// Whether only a fresh secret is wanted.
    pub fn wants_new_secret(&self) -> bool {
        self.seal.new_secret
    }

    /// The secret, if there is one, which none of the `names` that are given can be. Fails if an option can't be used
    /// with it.
    pub fn secret(&self, names: &[&Option<String>]) -> Result<Option<Secret>> {
        let not_sealed = [("--unsigned", self.unsigned), ("--tutorial", self.tutorial)];
        self.seal.secret(not_sealed, names)
    }

    /// Whether a user who is asked for the peer's name is shown who has written. With the tutorial's `chat.py`, nobody
    /// has a position.
    pub fn lists_writers(&self) -> bool {
        terminal::is_typed() && !self.tutorial
    }

    /// Who talks with whom. Fails if the two are the same.
    pub fn parties(&self, me: Name, peer: Name) -> Result<Parties> {
        Parties::new(me, peer, self.unsigned, self.tutorial)
    }

    /// When a line that is not acknowledged is given up.
    pub(super) fn delivery_timeout(&self) -> Duration {
        self.delivery.timeout()
    }

    /// Whether the user has asked for lines that were written before.
    pub(super) fn asks_for_earlier(&self) -> bool {
        self.last.is_some_and(|last| last > 0)
    }

    /// How many lines of both sides are shown that were written before.
    pub(super) fn earlier_lines(&self) -> usize {
        let default = match terminal::is_shown() {
            true => EARLIER_LINES,
            false => 0,
        };
        self.last.unwrap_or(default) as usize
    }

    /// What these arguments say.
    #[cfg(test)]
    pub(super) fn of(arguments: &[&str]) -> Options {
        use clap::{Command, FromArgMatches};

        let command = Options::augment_args(Command::new("chat").no_binary_name(true));
        Options::from_arg_matches(&command.get_matches_from(arguments)).unwrap()
    }
}
