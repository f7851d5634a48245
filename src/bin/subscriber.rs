//! Prints what arrives in the user's topic.

use std::process::ExitCode;

use clap::Parser;
use kafka_chat::cli::{self, Connection, From};
use kafka_chat::error::Result;
use kafka_chat::terminal::{self, Screen};
use kafka_chat::until::Until;

/// Prints the messages that others send to ME
#[derive(Parser)]
#[command(version, after_help = "Example: subscriber bob --from earliest -e")]
struct Arguments {
    /// Your name, which is your topic's; asked for if left out
    me: Option<String>,
    /// Where to start: behind the newest message, or at the oldest one kept
    #[arg(long, value_name = "WHERE", default_value = "latest")]
    from: From,
    /// End after N messages
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
    /// End where the log ended at the start
    #[arg(short = 'e', long)]
    until_end: bool,
    /// Print the sender's name before each message
    #[arg(short, long)]
    show_sender: bool,
    #[command(flatten)]
    connection: Connection,
}

fn main() -> ExitCode {
    cli::run(|| subscribe(Arguments::parse()))
}

fn subscribe(arguments: Arguments) -> Result<()> {
    let me = cli::name(arguments.me, cli::WHO_ARE_YOU)?;
    let cluster = arguments.connection.connect()?;
    let mut consumer = cluster.consumer(&me, arguments.from.into())?;
    let ends = arguments.until_end.then(|| consumer.end_offsets());
    let mut until = Until::new(arguments.count, ends.transpose()?);
    let screen = Screen::open(arguments.show_sender);
    let stop = cli::stop_on_signal(until.verdict(&consumer.position()))?;
    terminal::on_closed(|| cli::exit(Ok(())));

    let hint = format!("waiting for messages to {me}; Ctrl-C ends");
    while !stop.is_set() && !until.is_reached(&consumer.position()) {
        let polled = kafka_chat::session::try_poll(consumer.as_mut(), cli::TICK, |record| {
            let at = (record.partition, record.offset);
            match until.takes(at.0, at.1) {
                true => screen.message(record.key, record.value, at),
                false => Ok(()),
            }
        });
        screen.flush()?;
        polled?.into_iter().for_each(|event| cli::listener()(event));
        screen.hint_once(&hint);
    }
    until.verdict(&consumer.position())
}
