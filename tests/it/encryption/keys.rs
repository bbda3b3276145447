//! `keygen`, and what `doctor` says of keys.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use super::people::{Given, Key, Site, backup, machine};
use crate::support::{
    binary::{Output, Run},
    temp_folder,
    workspace::Workspace,
};

/// What Debian's `age-keygen` takes for the recipient of an identity file.
fn recipient_of(file: &std::path::Path) -> String {
    let output = Command::new("age-keygen").arg("-y").arg(file).output().expect("age-keygen can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// `keygen --output FILE` with more arguments.
fn keygen(file: &str, more: &[&str]) -> Run {
    Run::new(&[&["keygen", "--output", file], more].concat())
}

#[test]
fn keygen_writes_a_file_for_its_owner_alone_and_shows_the_recipient() {
    let folder = temp_folder();
    let file = folder.path().join("identity");
    let name = file.to_str().unwrap();
    for (more, run) in [(&[][..], 1), (&["--json"], 2)] {
        let output = keygen(name, more).ok();
        let text = fs::read_to_string(&file).unwrap();
        let secret = text.lines().find(|line| line.starts_with("AGE-SECRET-KEY-1")).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600, "run {run}");
        let recipient = recipient_of(&file);
        if more.is_empty() {
            assert_eq!(output.stdout, format!("{recipient}\n"));
            assert!(output.stderr.contains(name), "{}", output.text());
        } else {
            assert_eq!(output.json(), serde_json::json!({"recipient": recipient, "file": name}));
        }
        assert!(!output.text().contains(&secret[16..]), "the secret is shown");

        // Never over one that is there.
        let again = keygen(name, more).output().assert_error(6, &[name, "hint:"]);
        assert!(!again.text().contains("age1"), "{}", again.text());
        assert_eq!(fs::read_to_string(&file).unwrap(), text, "unchanged");
        fs::remove_file(&file).unwrap();
    }
    let nowhere = folder.path().join("none/identity");
    Run::new(&["keygen", "--output"]).argument(&nowhere).output().assert_error(1, &[nowhere.to_str().unwrap()]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn keygen_prints_only_when_told_to() {
    let folder = temp_folder();
    let file = folder.path().join("identity");
    let printed = Run::new(&["keygen", "--print"]).ok();
    fs::write(&file, &printed.stdout).unwrap();
    assert!(printed.stdout.contains(&format!("# public key: {}\n", recipient_of(&file))), "not shown: a secret");

    let document = Run::new(&["keygen", "--print", "--json"]).ok().json();
    fs::write(&file, document["identity"].as_str().unwrap()).unwrap();
    assert_eq!(document["recipient"], recipient_of(&file));
    assert_eq!(document.as_object().unwrap().len(), 2);

    for arguments in [&["keygen"][..], &["keygen", "--json"], &["keygen", "--print", "--output", "/nonexistent/x"]] {
        let refused = Run::new(arguments).output().assert_code(2);
        assert!(!refused.text().contains("AGE-SECRET-KEY"));
    }
}

/// `doctor`'s text.
fn doctor(machine: &Workspace, code: i32) -> Output {
    machine.run(&["doctor"]).output().assert_code(code)
}

#[test]
fn doctor_tells_what_is_weak_about_keys() {
    const OFF: &str = "encryption is off";
    const SINGLE: &str = "there is a single recipient";
    const CATALOG_IS_DATA: &str = "is a data identity too";
    const OPEN_FILE: &str = "can be read by others";
    const OTHERS: &str = "has other recipients than the configuration";
    const NONE: &str = "names no identity";
    const NO_RECIPIENT: &str = "who is no recipient";
    const NO_CATALOG: &str = "there is no catalogue identity";
    const ALL: [&str; 8] = [OFF, SINGLE, CATALOG_IS_DATA, OPEN_FILE, OTHERS, NONE, NO_RECIPIENT, NO_CATALOG];

    let site = Site::start(10);
    let (a, b, other) = (&site.operator, &site.escrow, &Key::new());
    let catalog = [&site.catalog];
    let good = Given { recipients: &[a, b], catalog: &catalog, ..Given::default() };
    let maker = machine(&site.place, good);
    maker.run(&["init"]).ok();
    backup(&maker);

    // Each of these lines and no other of them.
    let says = |output: &Output, lines: &[&str]| {
        for line in ALL {
            assert_eq!(output.stdout.contains(line), lines.contains(&line), "`{line}`\n{}", output.text());
        }
        let marked = output.stdout.lines().filter(|told| ALL.iter().any(|line| told.contains(line)));
        for told in marked {
            assert!(told.contains("warning") || told.contains("problem"), "{told}");
        }
    };
    let fine = doctor(&maker, 0);
    says(&fine, &[]);
    assert!(fine.stdout.contains("reads keys and manifests, no data"), "{}", fine.text());
    let whole = doctor(&machine(&site.place, Given { data: &[a], ..good }), 0);
    says(&whole, &[]);
    assert!(whole.stdout.contains("reads everything"), "{}", whole.text());
    says(&doctor(&site.reader(&site.place), 0), &[]);
    says(&doctor(&site.naive(&site.place), 0), &[NO_CATALOG]);

    says(&doctor(&machine(&site.place, Given { recipients: &[a], ..good }), 0), &[SINGLE, OTHERS]);
    let added = doctor(&machine(&site.place, Given { recipients: &[a, other], ..good }), 0);
    says(&added, &[OTHERS]);
    let line = added.stdout.lines().find(|line| line.contains(OTHERS)).unwrap();
    let (new, removed) = line.split_once("removed").unwrap();
    assert!(new.contains(&other.public()) && removed.contains(&b.public()), "{line}");
    assert!(!line.contains(&a.public()), "{line}");

    says(&doctor(&machine(&site.place, Given { data: &[other], ..good }), 0), &[NO_RECIPIENT]);
    // Of the same key: in the same two files, and as a recipient.
    let twice = machine(&site.place, Given { catalog: &[&site.catalog, a], data: &[a], ..good });
    says(&doctor(&twice, 0), &[CATALOG_IS_DATA]);
    says(
        &doctor(&machine(&site.place, Given { catalog: &[&site.catalog], data: &[&site.catalog], ..good }), 0),
        &[CATALOG_IS_DATA, NO_RECIPIENT],
    );

    says(&doctor(&machine(&site.place, Given { catalog: &[], ..good }), 1), &[NONE]);
    // Without the section no backup will be made: that is a problem beside this line.
    says(&doctor(&site.place, 1), &[OFF]);
    let clear = Workspace::folder().postgres(&site.source, &["altlas"]);
    clear.run(&["init"]).ok();
    says(&doctor(&clear, 0), &[OFF]);

    for (name, mode) in [("catalog_identity_file", 0o644), ("catalog_identity_file", 0o640), ("identity_file", 0o604)] {
        let open = machine(&site.place, Given { data: &[a], ..good });
        fs::set_permissions(open.path(name), fs::Permissions::from_mode(mode)).unwrap();
        let output = doctor(&open, 0);
        says(&output, &[OPEN_FILE]);
        let line = output.stdout.lines().find(|line| line.contains(OPEN_FILE)).unwrap();
        assert!(line.contains(&format!("(`{name}`)")) && line.contains(&format!("{mode:04o}")), "{line}");
        assert!(line.contains(open.path(name).to_str().unwrap()), "{line}");
    }
}
