//! Calls that have a bean of the app run, by the one route of the integration module.

use cabloy_crds::files::{BeanTarget, HttpTarget};
use cabloy_crds::vocabulary::Method;
use serde_json::json;

use crate::app::{Called, NOT_IN_THIS_VERSION, ended};
use crate::runs::{Outcome, OutcomeKind};

/// What `CabloyJS` 4 answers, by a 500, where the path names a module that it has not: of newer and older Node.js. The
/// integration module never does, for it says which instance has failed.
const NO_MODULE: [&str; 2] = [
    r#"{"message":"Cannot read properties of null (reading 'info')"}"#,
    r#"{"message":"Cannot read property 'info' of null"}"#,
];

/// The request that asks for it.
#[must_use]
pub fn request(target: &BeanTarget) -> HttpTarget {
    let BeanTarget { path, module, name, data, instances } = target;
    let body = json!({"module": module, "name": name, "data": data, "instances": instances});
    HttpTarget { path: path.clone(), method: Method::Post, body: Some(body), remembers_runs: true }
}

/// What comes of it. The module never answers 404: who does so is an app without it, or with its route elsewhere.
#[must_use]
pub fn explained(called: Called, target: &BeanTarget) -> Called {
    let Outcome { reason, message, .. } = &called.outcome;
    if reason != NOT_IN_THIS_VERSION && !NO_MODULE.iter().any(|body| message.ends_with(body)) {
        return called;
    }
    let message = format!(
        "the app has no POST {}: install the integration module cabloy-agent in it, or correct app.beanPath",
        target.path
    );
    Called { outcome: ended(OutcomeKind::Refused, NOT_IN_THIS_VERSION, &message), ..called }
}

#[cfg(test)]
mod tests {
    use cabloy_crds::files::Instances;
    use cabloy_crds::vocabulary::InstanceSet;

    use super::*;

    fn target() -> BeanTarget {
        BeanTarget {
            path: "/api/cabloy/agent/run".into(),
            module: "shop-report".into(),
            name: "schedule.nightly".into(),
            data: None,
            instances: Instances::default(),
        }
    }

    #[test]
    fn the_body_says_which_bean_and_for_whom() {
        let body = |instances: Instances| request(&BeanTarget { instances, ..target() }).body.unwrap();
        let named = json!({"module": "shop-report", "name": "schedule.nightly", "data": null, "instances": "Default"});
        assert_eq!(body(Instances::default()), named);
        assert_eq!(body(Instances::Set(InstanceSet::All))["instances"], "All");
        assert_eq!(body(Instances::Listed(vec![String::new(), "north".into()]))["instances"], json!(["", "north"]));
    }

    #[test]
    fn a_missing_module_is_told_from_all_else() {
        let of = |kind: OutcomeKind, reason: &str, message: &str| {
            explained(Called::by(ended(kind, reason, message)), &target()).outcome
        };
        let null = r#"500 Internal Server Error: {"message":"Cannot read properties of null (reading 'info')"}"#;
        for (kind, reason, message) in [
            (OutcomeKind::Refused, NOT_IN_THIS_VERSION, "404 Not Found: {}"),
            (OutcomeKind::Failed, "ServerError", null),
        ] {
            let outcome = of(kind, reason, message);
            assert_eq!((outcome.kind, &*outcome.reason), (OutcomeKind::Refused, NOT_IN_THIS_VERSION));
            assert!(outcome.message.contains("/api/cabloy/agent/run") && outcome.message.contains("install"));
        }
        let own = null.replace("Cannot", "(default): Cannot");
        assert_eq!(of(OutcomeKind::Failed, "ServerError", &own).message, own);
        assert_eq!(of(OutcomeKind::Refused, "Refused", "422").reason, "Refused");
    }
}
