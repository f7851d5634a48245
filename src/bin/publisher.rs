//! Each line of standard input becomes one message in the peer's topic.

use std::io;
use std::process::ExitCode;
use std::sync::mpsc;

use clap::Parser;
use kafka_chat::cli::{self, Connection, Delivery, SecretSource};
use kafka_chat::client::{Reports, Route};
use kafka_chat::delivery::{self, Arrival};
use kafka_chat::ending::{self, Owner};
use kafka_chat::error::Result;
use kafka_chat::host::LocalBroker;
use kafka_chat::lines::Lines;
use kafka_chat::progress::Progress;

/// Sends each line of standard input to PEER
#[derive(Parser)]
#[command(version, after_help = "Example: seq 3 | publisher alice bob")]
pub(crate) struct Arguments {
    /// Your name; asked for if left out
    me: Option<String>,
    /// Whom to write to: the topic of that name; asked for if left out
    peer: Option<String>,
    #[command(flatten)]
    delivery: Delivery,
    #[command(flatten)]
    secret: SecretSource,
    #[command(flatten)]
    connection: Connection,
}

fn main() -> ExitCode {
    cli::run(publish)
}

fn publish(arguments: Arguments) -> Result<()> {
    let secret = arguments.secret.secret(&[&arguments.me, &arguments.peer])?;
    let me = cli::name(arguments.me, cli::WHO_ARE_YOU)?;
    let peer = cli::name(arguments.peer, cli::WHO_ELSE)?;
    let (cluster, broker) = arguments.connection.connect()?;
    let (tx, arrivals) = mpsc::channel();
    let timeout = arguments.delivery.timeout();
    let reports = Reports::to(tx.clone());
    let route = Route::new(&me, &peer);
    let (mut outbox, ledger) = delivery::open(&*cluster, route, secret, timeout, reports)?;
    ending::on_signal(tx.clone(), || Arrival::Interrupted)?;
    let progress = Progress::of_input();
    let shown = progress.clone();
    LocalBroker::report_to(&broker, move |report| shown.say(report));
    let shown = progress.clone();
    let owner = Owner::start("publisher", move || {
        let verdict = delivery::settle(ledger, &arrivals, timeout * 2, |event| shown.say(event));
        shown.end();
        // If this process runs the small broker, it is stopped here, in order.
        drop(cluster);
        verdict
    })?;

    let ended = Lines::new(io::stdin().lock()).each_while(|line| {
        progress.line(line);
        outbox.send(line)
    });
    _ = tx.send(Arrival::InputEnded(ended));
    owner.wait()
}
