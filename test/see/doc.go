// Package see owns what the tests of the status page share: reading it off the
// screen of a real browser.
package see
