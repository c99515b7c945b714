// Workload is what test pods run: it allocates memory, fills the page cache,
// sleeps, or reports the memory limits that its first instruction found.
package main
