//! Runs the commands of `docs/tour.md`, and compares what they print with what is there.
//!
//! A block whose type is `console` alone is for a shell on the small broker. With a name (`console bob`), it is for a
//! terminal of its own on a real Kafka, and shows all that appears there; `^D` is Ctrl-D.

#[cfg(feature = "librdkafka")]
pub(crate) mod on_kafka;

use std::path::Path;

use tempfile::TempDir;

use crate::support::{PATIENCE, Program, Running, free_port};

const TOUR: &str = "docs/tour.md";
const TOUR_VI: &str = "docs/tour.vi.md";

/// The port in the tour, which stands for one that is free.
const PORT: &str = "9092";

/// What a build without librdkafka refuses.
const BY_TIME: &str = "--from $now";

/// What the shell prints after each command.
const DONE: &str = "-- done --\n";

/// After which the user types: in a shell, and in the two chats.
const PROMPTS: [&str; 3] = ["$ ", "alice> ", "bob> "];

/// What is typed in the tour, and what must appear.
#[derive(Debug, PartialEq)]
struct Step<'a> {
    /// The terminal, if the block has a name: one of those on a real Kafka.
    terminal: &'a str,
    /// The prompt and what is typed after it; empty if it is only watched.
    prompt: &'a str,
    command: &'a str,
    expected: String,
}

/// The text of a file of this checkout.
fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    std::fs::read_to_string(path).unwrap_or_else(|why| panic!("{file}: {why}"))
}

/// What is in the page's blocks of type `console`.
fn steps(page: &str) -> Vec<Step<'_>> {
    let mut steps: Vec<Step<'_>> = Vec::new();
    let mut block = None;
    for line in page.lines() {
        if let Some(kind) = line.strip_prefix("```") {
            block = kind.strip_prefix("console").map(str::trim);
            let is_named = block.is_some_and(|terminal| !terminal.is_empty());
            steps.extend(is_named.then(|| Step::new(block.unwrap(), "", line)));
            continue;
        }
        let Some(terminal) = block else { continue };
        match PROMPTS.iter().find(|prompt| line.starts_with(**prompt)) {
            Some(prompt) => steps.push(Step::new(terminal, prompt, line)),
            None => {
                let step = steps.last_mut().expect("a block starts with a command");
                step.expected.push_str(line);
                step.expected.push('\n');
            }
        }
    }
    steps
}

impl<'a> Step<'a> {
    fn new(terminal: &'a str, prompt: &'a str, line: &'a str) -> Step<'a> {
        Step {
            terminal,
            prompt,
            command: line
                .strip_prefix(prompt)
                .filter(|_| !prompt.is_empty())
                .unwrap_or_default(),
            expected: String::new(),
        }
    }
}

/// `PATH` with our programs first.
fn path() -> String {
    let programs = Path::new(env!("CARGO_BIN_EXE_chat")).parent().unwrap();
    format!("{}:{}", programs.display(), std::env::var("PATH").unwrap())
}

/// A bash in an empty folder that finds the programs first, with both outputs in one.
fn shell(folder: &TempDir) -> Running {
    let setup = "unset KAFKA_BOOTSTRAP_SERVERS KAFKA_CHAT_DATA_DIR; cd \"$HOME\" && exec bash 2>&1";
    Program::other("sh", &["-c", setup])
        .env("PATH", path())
        .env("HOME", folder.path())
        .start()
}

/// Runs a command. What a background job of it prints may come after its end.
fn output_of(shell: &mut Running, step: &Step<'_>) -> String {
    let start = shell.stdout.bytes().len();
    shell.write(format!("{}\necho '{}'\n", step.command, DONE.trim_end()));
    let printed = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(&bytes[start..]).into_owned();
        text.contains(DONE).then(|| text.replacen(DONE, "", 1))
    };
    let is_all =
        |bytes: &[u8]| printed(bytes).is_some_and(|text| text.len() >= step.expected.len());
    shell.stdout.wait(PATIENCE, is_all);
    printed(&shell.stdout.bytes()).unwrap_or_else(|| panic!("no end\n{}", shell.report()))
}

/// What was printed, with `..` where `expected` has that: it differs each time.
fn masked(mut printed: String, expected: &str) -> String {
    for (at, mask) in expected.match_indices("..") {
        let end = at + mask.len();
        if printed.is_char_boundary(at) && printed.is_char_boundary(end) {
            printed.replace_range(at..end, mask);
        }
    }
    printed
}

#[test]
fn every_command_of_the_tour_prints_what_the_tour_says() {
    let page = read(TOUR).replace(PORT, &free_port().to_string());
    let folder = tempfile::tempdir().unwrap();
    let mut shell = shell(&folder);
    let steps = steps(&page);
    assert!(!steps.is_empty(), "the tour has no commands");
    for step in steps.iter().filter(|step| step.terminal.is_empty()) {
        if !cfg!(feature = "librdkafka") && step.command.contains(BY_TIME) {
            continue;
        }
        let printed = masked(output_of(&mut shell, step), &step.expected);
        assert_eq!(printed, step.expected, "$ {}", step.command);
    }
}

#[test]
fn the_tour_has_the_same_commands_and_names_the_same_functions_in_vietnamese() {
    let (tour, vietnamese) = (read(TOUR), read(TOUR_VI));
    assert_eq!(steps(&vietnamese), steps(&tour));
    assert_eq!(functions(&vietnamese), functions(&tour));
}

#[test]
fn every_function_that_the_tour_names_is_in_the_file_that_it_names() {
    let tour = read(TOUR);
    let functions = functions(&tour);
    assert!(!functions.is_empty(), "the tour names no function");
    for (name, file) in functions {
        let source = read(file);
        let is_there = |next| source.contains(&format!("fn {name}{next}"));
        assert!(is_there('(') || is_there('<'), "{name} in {file}");
    }
}

/// The functions that a page names, each with its file, as "`NAME` in [FILE]".
fn functions(page: &str) -> Vec<(&str, &str)> {
    let links = page.match_indices("[src/").filter_map(|(at, _)| {
        let (before, link) = page.split_at(at);
        let mut parts = before.rsplit('`');
        let is_named = parts.next()?.split_whitespace().count() == 1;
        let name = parts.next()?;
        let (file, _) = link[1..].split_once(']')?;
        is_named.then_some((name, file))
    });
    links.collect()
}
