// Package status owns what memqos tells of a node: the types of the JSON that an
// agent serves and that kubectl memqos, memqos inspect and the status page show.
// It is pure.
package status
