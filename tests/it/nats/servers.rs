//! The servers that the tests stand on, and what an independent client sees in them.

use crate::support::nats::{Nats, NatsVersion};

#[test]
fn every_version_starts() {
    for version in NatsVersion::ALL {
        let nats = Nats::start(version);
        let said = nats.connection().info["version"].as_str().unwrap().to_owned();
        assert!(said.starts_with(&format!("{}.", version.number())), "{said}");
        assert_eq!(nats.streams(), Vec::<String>::new());
    }
}
