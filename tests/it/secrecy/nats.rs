//! The same for NATS: no stream, consumer, subject, header or payload, no password and no token.

use serde_json::json;

use super::{
    SOON, files,
    search::{Class, Evidence, Needle, OnPurpose, Search},
};
use crate::support::{
    binary::Run,
    mode::Mode,
    nats::{Nats, NatsVersion, Setup},
    wait_for,
    workspace::Workspace,
};

/// What plans and results of a restore, and `show`, tell on purpose.
const NAMES: [&str; 3] = ["STREAM-OF-XYLOPHAGE", "CONSUMER-OF-CAMEMBERT", "QUEUE-OF-BRACHIOSAUR"];
/// What nothing tells but `show --json`, which prints a stream's configuration.
const CONFIGURED: [&str; 2] = ["subject-of-widdershins", "description of Snollygoster"];
const VALUES: [&str; 4] = ["token-of-zymurgy", "Header-Of-Oubliette", "value of Rigmarole", "payload of Taradiddle"];
const WRONG: &str = "pw-wrong-Bandersnatch-0815";

fn filled(version: NatsVersion, setup: Setup) -> Nats {
    let server = Nats::start_as(version, setup);
    let ([stream, consumer, queue], [subject, description]) = (NAMES, CONFIGURED);
    let [token, header, value, payload] = VALUES;
    let subjects = format!("{subject}.>");
    server.ask(
        &format!("STREAM.CREATE.{stream}"),
        &json!({ "name": stream, "subjects": [subjects], "storage": "file", "description": description }),
    );
    server.ask(
        &format!("STREAM.CREATE.{queue}"),
        &json!({ "name": queue, "subjects": ["queue"], "storage": "file", "retention": "workqueue" }),
    );
    let config = json!({ "durable_name": consumer, "ack_policy": "explicit" });
    server.ask(
        &format!("CONSUMER.DURABLE.CREATE.{stream}.{consumer}"),
        &json!({ "stream_name": stream, "config": config }),
    );
    let mut connection = server.connection();
    let head = format!("NATS/1.0\r\n{header}: {value}\r\n\r\n");
    for n in 0..40 {
        let payload = format!("{payload} {n}");
        connection.publish_with_header(&format!("{subject}.{token}.{n}"), head.as_bytes(), payload.as_bytes()).unwrap();
    }
    wait_for("the messages", SOON, || (server.messages(stream) == 40).then_some(()));
    server
}

struct Seen {
    evidence: Vec<Evidence>,
    /// Of the runs that have to go well, those that did not.
    unexpected: Vec<String>,
}

impl Seen {
    fn see(&mut self, run: Run, what: &str, names: &'static [Class], code: i32) {
        let output = run.output();
        if output.code != Some(code) {
            self.unexpected.push(output.text());
        }
        let on_purpose = OnPurpose::of(names);
        self.evidence.push(Evidence { at: what.to_owned(), bytes: output.text().into_bytes(), on_purpose });
    }
}

/// Everything that can be said of a backup and a restore, also of those that fail.
fn tour(workspace: &mut Workspace, source: &mut Nats) -> Seen {
    let mut seen = Seen { evidence: Vec::new(), unexpected: Vec::new() };
    // Whoever restores has to know what into; a listing of what there is tells it all.
    const SAYS: &[Class] = &[Class::Name];
    const TELLS: &[Class] = &[Class::Name, Class::Column];
    let target = Nats::start(source.version());
    let old = Nats::start(NatsVersion::V29);
    let older = if source.version() > NatsVersion::V29 { 6 } else { 0 };
    let crowded = Nats::start(source.version());
    crowded.ask("STREAM.CREATE.ANOTHER", &json!({ "name": "ANOTHER", "subjects": [format!("{}.>", CONFIGURED[0])] }));
    for verbosity in [&["-v", "-v"][..], &["--json", "-v", "-v"]] {
        let into = |server: &Nats| format!("messages={}", server.url_with_user());
        let (new, old_target, clash) = (into(&target), into(&old), into(&crowded));
        let restore = |more: &[&'static str], target: &str| -> Vec<String> {
            let words = ["restore", "latest", "--target", target];
            words.iter().chain(more).map(|word| (*word).to_owned()).collect()
        };
        let plain = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        for (arguments, names, code, password) in [
            (plain(&["doctor"]), &[][..], 0, ""),
            (plain(&["backup"]), &[], 0, ""),
            (plain(&["list"]), &[], 0, ""),
            (plain(&["show", "latest"]), TELLS, 0, ""),
            (plain(&["verify", "latest", "--level", "presence"]), &[], 0, ""),
            (plain(&["verify", "latest", "--level", "content"]), &[], 0, ""),
            (restore(&["--dry-run"], &new), SAYS, 0, target.password()),
            (restore(&["--yes"], &new), SAYS, 0, target.password()),
            (restore(&["--yes"], &new), SAYS, 6, target.password()),
            (restore(&["--yes", "--overwrite"], &new), SAYS, 0, target.password()),
            (restore(&["--yes"], &clash), TELLS, 6, crowded.password()),
            (restore(&["--yes"], &new), SAYS, 1, WRONG),
            (restore(&["--dry-run"], &old_target), SAYS, older, old.password()),
            (restore(&["--yes"], "messages=nats://127.0.0.1:1"), SAYS, 1, target.password()),
        ] {
            let all: Vec<&str> = arguments.iter().map(String::as_str).chain(verbosity.iter().copied()).collect();
            let run = workspace.run(&all).env("ALTLAS_BACKUP_TARGET_MESSAGES_PASSWORD", password);
            seen.see(run, &all.join(" "), names, code);
        }
        for stream in target.streams() {
            target.delete_stream(&stream);
        }
    }
    let rightly = workspace.table["source"][0].clone();
    let wrong = workspace.secret("wrong", WRONG);
    let secret = if source.user().is_empty() { "token_file" } else { "password_file" };
    workspace.set(&format!("source.0.{secret}"), wrong.display().to_string());
    seen.see(workspace.run(&["backup", "-v", "-v"]), "a wrong password", &[], 1);
    seen.see(workspace.run(&["doctor", "-v", "-v"]), "a wrong password", &[], 1);
    workspace.table["source"][0] = rightly;
    // A stream that is asked for by its name, and is not there.
    workspace.set("source.0.streams", vec!["SOMETHING-ELSE"]);
    seen.see(workspace.run(&["backup", "-v", "-v"]), "no such stream", &[], 1);
    workspace.set("source.0.streams", vec!["*"]);
    source.kill();
    seen.see(workspace.run(&["backup", "-v", "-v"]), "nobody there", &[], 1);
    source.resume();
    seen
}

fn search(source: &Nats) -> Search {
    let mut needles: Vec<Needle> = NAMES.iter().map(|word| Needle::new(Class::Name, *word, word)).collect();
    needles.extend(CONFIGURED.iter().map(|word| Needle::new(Class::Column, *word, word)));
    needles.extend(VALUES.iter().map(|word| Needle::new(Class::Value, *word, word)));
    needles.extend([source.password(), WRONG].map(|word| Needle::new(Class::Secret, "a password", word)));
    Search::new(needles)
}

fn look(version: NatsVersion, setup: &Setup, mode: Mode) {
    let mut source = filled(version, setup.clone());
    let search = search(&source);
    let mut workspace = Workspace::folder().mode(mode);
    workspace = match source.user() {
        "" => {
            let mut workspace = workspace.nats_as("messages", &source.url(), &source.password_file());
            let fields = workspace.table["source"][0].as_table_mut().unwrap();
            let file = fields.remove("password_file").unwrap();
            fields.insert("token_file".into(), file);
            workspace
        }
        _ => workspace.nats(&source),
    };
    workspace.run(&["init"]).ok();
    let seen = tour(&mut workspace, &mut source);
    assert_eq!(seen.unexpected, Vec::<String>::new(), "{version:?} {mode:?}");
    assert!(seen.evidence.len() > 30);
    let leaks = |from: &[Evidence]| from.iter().flat_map(|one| search.leaks(one)).collect::<Vec<String>>();
    assert_eq!(leaks(&seen.evidence), Vec::<String>::new(), "{version:?} {mode:?}");
    let objects: Vec<Evidence> = files(&workspace.repository_folder())
        .into_iter()
        .map(|(name, bytes)| Evidence {
            at: format!("object {name}"),
            bytes: [name.as_bytes(), &bytes].concat(),
            on_purpose: OnPurpose::default(),
        })
        .collect();
    let is_head = |evidence: &&Evidence| evidence.at.ends_with("/head.json");
    assert!(objects.iter().any(|object| is_head(&object)));
    for head in objects.iter().filter(is_head) {
        assert_eq!(search.leaks(head), Vec::<String>::new(), "{version:?} {mode:?}");
    }
    let stored = leaks(&objects);
    match mode {
        Mode::Encrypted => assert_eq!(stored, Vec::<String>::new(), "{version:?}"),
        // In clear each is found, or the search would not have found a leak either.
        Mode::Clear => {
            for word in NAMES.iter().chain(&CONFIGURED).chain(&VALUES) {
                assert!(stored.iter().any(|leak| leak.contains(word)), "`{word}` is not found in clear: {stored:?}");
            }
            assert!(!stored.iter().any(|leak| leak.contains("Secret")), "{stored:?}");
        }
    }
}

#[test]
fn nothing_tells_what_a_nats_holds() {
    for mode in [Mode::Encrypted, Mode::Clear] {
        look(NatsVersion::V215, &Setup::new(), mode);
    }
    look(NatsVersion::V29, &Setup::new().token(), Mode::Encrypted);
}
