//! Prints what arrives in the user's topic.

use std::process::ExitCode;

use clap::Parser;
use kafka_chat::cli::{self, Connection, SecretSource};
use kafka_chat::ending;
use kafka_chat::error::Result;
use kafka_chat::reading::Reading;

/// Prints the messages that others send to ME
#[derive(Parser)]
#[command(version, after_help = "Example: subscriber bob --from earliest -e")]
pub(crate) struct Arguments {
    /// Your name, which is your topic's; asked for if left out
    me: Option<String>,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    secret: SecretSource,
    #[command(flatten)]
    connection: Connection,
}

fn main() -> ExitCode {
    cli::run(subscribe)
}

fn subscribe(arguments: Arguments) -> Result<()> {
    let secret = arguments.secret.secret(&[&arguments.me])?;
    let me = cli::name(arguments.me, cli::WHO_ARE_YOU)?;
    let reading = arguments.reading;
    let in_full = reading.option_that_reads_in_full();
    let (cluster, _) = arguments.connection.connect_to_read(in_full)?;
    let output = reading.output(&me);
    let (mut consumer, limit) = reading.open(cluster.as_ref(), &me, secret, &output)?;
    let hint = format!("waiting for messages to {me}; Ctrl-C ends");
    let if_stuck = limit.whole_verdict(&consumer.position());
    ending::supervise("consumer", if_stuck, move |stop| {
        limit.print(consumer.as_mut(), output, &hint, stop)
    })
}
