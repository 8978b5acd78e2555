package api

import "time"

// For the tests, which are outside the package.
var (
	Decode       = decode
	ParseWriteID = parseWriteID
	ParseKey     = parseKey
	HealthStatus = healthStatus
)

// SetLimits replaces the bounds on requests under way, before Serve.
func (s *Server) SetLimits(all, each int) { s.admission = newAdmission(all, each) }

// SetWatchLimits replaces the bounds on watches, before Serve.
func (s *Server) SetWatchLimits(all, each int) { s.watches = newWatches(all, each) }

// SetTimeouts replaces the server's patience, before Serve.
func (s *Server) SetTimeouts(header, read, write, idle time.Duration) {
	s.http.ReadHeaderTimeout, s.http.ReadTimeout, s.http.WriteTimeout, s.http.IdleTimeout = header, read, write, idle
}
