//! Each line of standard input becomes one message in the other's topic.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use kafka_chat::cli::{self, Connection, Delivery};
use kafka_chat::error::Result;
use kafka_chat::ledger::Ledger;
use kafka_chat::lines::Lines;
use kafka_chat::progress::Progress;

/// Sends each line of standard input to PEER
#[derive(Parser)]
#[command(version, after_help = "Example: seq 3 | publisher alice bob")]
struct Arguments {
    /// Your name; asked for if left out
    me: Option<String>,
    /// Whom to write to: the topic of that name; asked for if left out
    peer: Option<String>,
    #[command(flatten)]
    delivery: Delivery,
    #[command(flatten)]
    connection: Connection,
}

fn main() -> ExitCode {
    cli::run(|| publish(Arguments::parse()))
}

fn publish(arguments: Arguments) -> Result<()> {
    let me = cli::name(arguments.me, cli::WHO_ARE_YOU)?;
    let peer = cli::name(arguments.peer, cli::WHO_ELSE)?;
    let cluster = arguments.connection.connect()?;
    let ledger = Ledger::new();
    let progress = Progress::of_input();
    let notices = progress.beside(cli::listener());
    let timeout = arguments.delivery.timeout();
    let mut producer = cluster.producer(
        &me,
        &peer,
        timeout,
        ledger.reports(move |event| notices(event)),
    )?;
    let (interrupted, shown) = (ledger.clone(), progress.clone());
    let typed = io::stdin().is_terminal();
    cli::on_signal(move || {
        shown.end();
        interrupted.interrupted(typed)
    })?;
    let mut lines = Lines::new(io::stdin().lock());
    let read = loop {
        match lines.next_line() {
            _ if ledger.is_broken() => break Err(ledger.rest_is_unread()),
            Err(error) => break Err(error),
            Ok(None) => break Ok(()),
            Ok(Some(line)) => {
                progress.line(&line);
                ledger.send(&line, producer.as_mut());
            }
        }
    };
    ledger.wait(timeout * 2);
    ledger.verdict_after(read)
}
