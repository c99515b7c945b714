// Package plugin owns kubectl memqos: it asks the agents of a cluster through the API
// server, and shows what they tell.
package plugin
