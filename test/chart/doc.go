// Package chart owns the proof that the Helm chart says what the agent understands:
// its values, their schema and README, and what helm makes of them. What needs helm
// has the build tag chart; `make chart` builds helm and runs it.
package chart
