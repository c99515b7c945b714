// Package page owns the status page: a NodeStatus as HTML, and the read-only handler
// that serves it and its JSON.
package page
