//! Writes the programs' man pages and their completions for bash, zsh and fish, from their command lines.
//!
//! `cargo run --example pages -- FOLDER` lays them out as under `/usr/share`. Not shipped itself. An example and no build
//! script, so that only those who package the programs wait for it.

use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::builder::ValueHint;
use clap::{Arg, Command, CommandFactory};
use clap_complete::{Generator, Shell, generate};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

#[path = "../src/bin/chat.rs"]
#[expect(dead_code, reason = "only its command line is used")]
mod chat;
#[path = "../src/bin/publisher.rs"]
#[expect(dead_code, reason = "only its command line is used")]
mod publisher;
#[path = "../src/bin/subscriber.rs"]
#[expect(dead_code, reason = "only its command line is used")]
mod subscriber;

/// A program's name, its command line, and examples for its page: what is typed, and what that does.
type Program = (&'static str, Command, Examples);
type Examples = &'static [(&'static str, &'static str)];

const PUBLISHER: Examples = &[
    ("publisher alice bob", "Sends bob what alice types."),
    ("seq 3 | publisher alice bob", "Sends bob three lines."),
    (
        "publisher alice bob -b kafka.example.org:9093 -X security.protocol=ssl < notes.txt",
        "Sends the lines of a file, through a Kafka with TLS.",
    ),
];
const SUBSCRIBER: Examples = &[
    ("subscriber bob", "Prints what arrives for bob from now on."),
    (
        "subscriber bob --from earliest --until-end > all.txt",
        "Writes all that bob was ever sent, and is still kept, to a file.",
    ),
    (
        "subscriber bob --from 2h --time --show-sender",
        "Starts two hours ago, and says when each message was sent and by whom.",
    ),
];
const CHAT: Examples = &[
    (
        "chat alice bob",
        "alice talks with bob, who types: chat bob alice",
    ),
    (
        "chat alice bob -b kafka.example.org",
        "The same on a Kafka.",
    ),
    (
        "chat alice bob --embedded=9094 --data-dir /tmp/chat",
        "The same on a small broker with a port and a folder of its own.",
    ),
];

fn main() -> Result<(), Box<dyn Error>> {
    let folder: PathBuf = std::env::args_os()
        .nth(1)
        .ok_or("usage: pages FOLDER")?
        .into();
    let programs: [Program; 3] = [
        ("publisher", publisher::Arguments::command(), PUBLISHER),
        ("subscriber", subscriber::Arguments::command(), SUBSCRIBER),
        ("chat", chat::Arguments::command(), CHAT),
    ];
    for (name, command, examples) in programs {
        let mut command = command.name(name).bin_name(name);
        command.build();
        let page = page(&command, examples)?;
        write(&folder, &format!("man/man1/{name}.1"), &page)?;

        // A number is not completed with files. A name is: with nothing to offer for it, zsh completes no option.
        let mut command = command.mut_args(|arg| match arg.get_value_hint() {
            ValueHint::Unknown if !arg.is_positional() => arg.value_hint(ValueHint::Other),
            _ => arg,
        });
        for (shell, place) in [
            (Shell::Bash, format!("bash-completion/completions/{name}")),
            (Shell::Zsh, format!("zsh/vendor-completions/_{name}")),
            (
                Shell::Fish,
                format!("fish/vendor_completions.d/{name}.fish"),
            ),
        ] {
            write(&folder, &place, &completion(shell, &mut command, name))?;
        }
    }
    Ok(())
}

fn write(folder: &Path, place: &str, text: &[u8]) -> Result<(), Box<dyn Error>> {
    let file = folder.join(place);
    fs::create_dir_all(file.parent().ok_or("no folder")?)?;
    Ok(fs::write(file, text)?)
}

fn completion(shell: impl Generator, command: &mut Command, name: &str) -> Vec<u8> {
    let mut text = Vec::new();
    generate(shell, command, name, &mut text);
    text
}

/// The man page of a program.
fn page(command: &Command, examples: Examples) -> Result<Vec<u8>, Box<dyn Error>> {
    let version = command.get_version().unwrap_or_default();
    let man = Man::new(command.clone())
        .date(date()?)
        .source(format!("kafka-chat {version}"))
        .manual("Console chat over Apache Kafka");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    let mut notes = Roff::new();
    for note in help_notes(command) {
        notes.control("PP", []).text([roman(note)]);
    }
    notes.to_writer(&mut text)?;
    man.render_options_section(&mut text)?;
    for (title, entries) in [
        ("EXIT STATUS", exit_codes()?),
        ("ENVIRONMENT", environment(command)),
        ("FILES", files()),
        ("EXAMPLES", checked(command, examples)?),
    ] {
        section(title, &entries).to_writer(&mut text)?;
    }
    let mut others = Roff::new();
    others.control("SH", ["SEE ALSO"]);
    let pages = ["publisher", "subscriber", "chat"].into_iter();
    let pages = pages.filter(|name| *name != command.get_name());
    let pages: Vec<_> = pages
        .chain(["kcat"])
        .map(|name| format!("{name}(1)"))
        .collect();
    others.text([roman(pages.join(", "))]);
    others.to_writer(&mut text)?;
    Ok(text)
}

/// The date of the page: that of the last commit, for `scripts/package`.
fn date() -> Result<String, Box<dyn Error>> {
    let Ok(seconds) = std::env::var("SOURCE_DATE_EPOCH") else {
        return Ok(String::new());
    };
    let time = jiff::Timestamp::from_second(seconds.parse()?)?;
    Ok(time.strftime("%Y-%m-%d").to_string())
}

/// What stands after the options in `--help`. The page has a section for its examples.
fn help_notes(command: &Command) -> Vec<String> {
    let notes = command.get_after_help().map(ToString::to_string);
    let notes = notes.unwrap_or_default();
    let notes = notes.lines().filter(|line| !line.starts_with("Example:"));
    notes.map(String::from).collect()
}

fn section(title: &str, entries: &[(String, String)]) -> Roff {
    let mut section = Roff::new();
    section.control("SH", [title]);
    for (term, text) in entries {
        section.control("TP", []);
        section.text([bold(term)]).text([roman(text)]);
    }
    section
}

/// The exit codes, from the table in the README.
fn exit_codes() -> Result<Vec<(String, String)>, Box<dyn Error>> {
    let readme = include_str!("../README.md");
    let lines = readme
        .lines()
        .skip_while(|line| !line.starts_with("| exit code |"));
    let rows = lines.skip(2).map_while(|line| {
        let (code, meaning) = line
            .strip_prefix("| ")?
            .strip_suffix(" |")?
            .split_once(" | ")?;
        Some((code.to_string(), meaning.replace('`', "")))
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return Err("README.md has no table of exit codes".into());
    }
    Ok(rows)
}

/// The variables that options name, and those of the terminal.
fn environment(command: &Command) -> Vec<(String, String)> {
    let mut variables: Vec<_> = command
        .get_arguments()
        .filter_map(|arg| {
            let option = arg.get_long()?;
            Some((variable(arg)?, format!("Used if --{option} is not given.")))
        })
        .collect();
    if command.get_name() == "chat" {
        let meaning = "If set and not empty, names and notices have no colours.";
        variables.push(("NO_COLOR".into(), meaning.into()));
    }
    variables
}

/// The variable of an option: clap's, or the one that its help names.
fn variable(arg: &Arg) -> Option<String> {
    if let Some(name) = arg.get_env() {
        return Some(name.to_string_lossy().into_owned());
    }
    let help = arg.get_help()?.to_string();
    let (_, rest) = help.split_once("[env: ")?;
    Some(rest.split_once(']')?.0.to_string())
}

fn files() -> Vec<(String, String)> {
    let log = "The log of the small broker, unless --data-dir or XDG_DATA_HOME names another folder. \
               It stays when the programs are removed.";
    vec![("~/.local/share/kafka-chat/".into(), log.into())]
}

/// The examples, whose options the program must have.
fn checked(command: &Command, examples: Examples) -> Result<Vec<(String, String)>, Box<dyn Error>> {
    let name = command.get_name();
    for (line, _) in examples {
        let words = line.split_whitespace().skip_while(|word| *word != name);
        let words = words.take_while(|word| !["<", ">", "|"].contains(word));
        let words: Vec<OsString> = words.map(OsString::from).collect();
        command
            .clone()
            .try_get_matches_from(words)
            .map_err(|why| format!("the example `{line}` is wrong: {why}"))?;
    }
    let examples = examples.iter();
    Ok(examples
        .map(|(line, text)| (line.to_string(), text.to_string()))
        .collect())
}
