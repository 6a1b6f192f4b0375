"""What people read: tables for a terminal, pages for a browser."""
