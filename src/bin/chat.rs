//! Both at once: shows what the other writes, and sends them what is typed.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::thread;

use clap::Parser;
use kafka_chat::cli::{self, Connection, Delivery};
use kafka_chat::conversation::Unsigned;
use kafka_chat::error::{Error, Result};
use kafka_chat::lines::Line;
use kafka_chat::session::{self, Parties, Writer};
use kafka_chat::terminal::{self, Terminal};

/// Talks with PEER, and with nobody else
#[derive(Parser)]
#[command(
    version,
    after_help = "Example: chat alice bob, and in another terminal: chat bob alice"
)]
struct Arguments {
    /// Your name; asked for if left out
    me: Option<String>,
    /// Whom to talk with; asked for if left out
    peer: Option<String>,
    /// Show lines that carry no name, too
    #[arg(long)]
    unsigned: bool,
    /// Talk with the tutorial's chat.py, which swaps the topics and signs nothing
    #[arg(long)]
    tutorial: bool,
    #[command(flatten)]
    delivery: Delivery,
    #[command(flatten)]
    connection: Connection,
}

fn main() -> ExitCode {
    cli::run(|| chat(Arguments::parse()))
}

fn chat(arguments: Arguments) -> Result<()> {
    let parties = Parties {
        me: cli::name(arguments.me, cli::WHO_ARE_YOU)?,
        peer: cli::name(arguments.peer, cli::WHO_ELSE)?,
        unsigned: match (arguments.tutorial, arguments.unsigned) {
            (true, _) => Unsigned::Peers,
            (_, true) => Unsigned::Shown,
            _ => Unsigned::Hidden,
        },
        swapped: arguments.tutorial,
    };
    if parties.me == parties.peer {
        return Err(Error::usage(format!(
            "{} can't chat with themselves",
            parties.me
        )));
    }
    let cluster = arguments.connection.connect()?;
    let mut terminal = Terminal::open(&parties.me)?;
    let timeout = arguments.delivery.timeout();
    let (session, reader, mut writer) =
        session::open(cluster.as_ref(), parties, timeout, terminal.screen())?;

    let ending = session.clone();
    cli::on_signal(move || ending.end(Ok(())))?;
    let ending = session.clone();
    thread::spawn(move || cli::exit(ending.end(reader.run())));
    let ending = session.clone();
    terminal::on_closed(move || cli::exit(ending.end(Ok(()))));
    session.end(write(&mut terminal, &mut writer))
}

fn write(terminal: &mut Terminal, writer: &mut Writer) -> Result<()> {
    while let Some(line) = terminal.next_line()? {
        match line {
            Line::Whole(text) => writer.send(text),
            Line::TooLong { bytes } => writer.too_long(bytes),
        }
    }
    if !io::stdin().is_terminal() {
        writer.flush();
    }
    Ok(())
}
