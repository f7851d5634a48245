//! Prints what arrives in the user's topic.

use std::process::ExitCode;

use clap::Parser;
use kafka_chat::cli::{self, Connection};
use kafka_chat::ending;
use kafka_chat::error::Result;
use kafka_chat::reading::Reading;

/// Prints the messages that others send to ME
#[derive(Parser)]
#[command(version, after_help = "Example: subscriber bob --from earliest -e")]
struct Arguments {
    /// Your name, which is your topic's; asked for if left out
    me: Option<String>,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    connection: Connection,
}

fn main() -> ExitCode {
    ending::run(|| subscribe(Arguments::parse()))
}

fn subscribe(arguments: Arguments) -> Result<()> {
    let me = cli::name(arguments.me, cli::WHO_ARE_YOU)?;
    let reading = arguments.reading;
    let (cluster, _) = match reading.option_that_reads_in_full() {
        Some(option) => arguments.connection.connect_to_read_in_full(option)?,
        None => arguments.connection.connect()?,
    };
    let output = reading.output(&me);
    let (mut consumer, limit) = reading.open(cluster.as_ref(), &me, &output)?;
    let hint = format!("waiting for messages to {me}; Ctrl-C ends");
    let if_stuck = limit.verdict(&consumer.position());
    ending::supervise("consumer", if_stuck, move |stop| {
        limit.print(consumer.as_mut(), output, &hint, stop)
    })
}
