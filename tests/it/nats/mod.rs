//! NATS servers.

mod servers;

use std::time::Duration;

/// How long something that is on its way may take.
const SOON: Duration = Duration::from_secs(60);
