"""Neural-network building blocks: recurrent cells, convolutions, pools and batch norm."""
