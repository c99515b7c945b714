// Package ledger owns what memqos has written and what was there before: the way
// back.
//
// It is a file in the state directory, on a tmpfs that lives as long as the
// cgroups that it tells of. A line is appended before each write, so that after a
// kill at any point nothing was written that is not in it. Losing the file is
// safe: what memqos wrote is then no longer told from what others did, and stays.
package ledger
