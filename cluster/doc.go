// Package cluster: see doc below.
package cluster
