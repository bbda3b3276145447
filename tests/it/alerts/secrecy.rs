//! Addresses and tokens of receivers are in no output and in no object.

use super::{failing, short};
use crate::support::{free_port, mode::Mode, receiver::Receiver};

const PATH: &str = "/services/T0QUETZAL/B0XYLOPHAGE/zymurgy-of-Jabberwock";
const KEY: &str = "key-of-Bandersnatch";
const TOKEN: &str = "token-of-Snollygoster";

#[test]
fn no_address_and_no_token_is_seen() {
    let receiver = Receiver::start();
    let mut workspace = failing(Mode::Clear, &receiver);
    workspace.table["alerts"]["webhook"].as_table_mut().unwrap().remove("url");
    let file = workspace.secret("address", "");
    workspace.set("alerts.webhook.url_file", file.display().to_string());
    workspace.set("alerts.webhook.token_file", workspace.secret("token", TOKEN).display().to_string());
    let mut seen = String::new();
    let address = |host: &str| std::fs::write(&file, format!("{host}{PATH}?key={KEY}\n")).unwrap();
    // Refused, elsewhere, nobody there, no such host, no address at all; then well.
    for (host, status) in [
        (receiver.url(""), 401),
        (receiver.url(""), 302),
        (format!("http://127.0.0.1:{}", free_port()), 200),
        (format!("https://127.0.0.1:{}", receiver.port()), 200),
        ("http://quetzal.invalid".to_owned(), 200),
        ("quetzal.invalid".to_owned(), 200),
        (receiver.url(""), 200),
    ] {
        address(&host);
        receiver.answer(status);
        for arguments in [&["backup", "-v", "-v"][..], &["doctor", "-v", "-v"], &["list", "--json", "-v", "-v"]] {
            // A receiver that does not answer is tried for a while, which a signal ends.
            let mut running = workspace.run(arguments).spawn();
            for _ in 0..30 {
                std::thread::sleep(std::time::Duration::from_millis(100));
                if !running.is_running() {
                    break;
                }
            }
            running.interrupt();
            seen += &running.wait().text();
        }
    }
    let told = receiver.take();
    assert_eq!(short(&told), ["firing backup-failed cache"]);
    assert_eq!(told[0].path, format!("{PATH}?key={KEY}"), "the address was right");
    assert_eq!(told[0].authorization, Some(format!("Bearer {TOKEN}")));
    for (key, bytes) in workspace.objects() {
        seen += &key;
        seen += &String::from_utf8_lossy(&bytes);
    }
    assert!(seen.contains("401") && seen.contains("could not be told"), "there was something to be seen");
    for secret in [PATH, "QUETZAL", "XYLOPHAGE", "Jabberwock", "Bandersnatch", "Snollygoster"] {
        let at = seen.find(secret).map(|at| &seen[at.saturating_sub(200)..(at + 100).min(seen.len())]);
        assert_eq!(at, None, "`{secret}` is seen");
    }
}
