//! Types of the `CabloyCluster` resource and of the files between operator and agent.
